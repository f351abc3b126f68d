#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_strings(nb::module_& m);  // strings.cpp

NB_MODULE(_ext, m) {
  m.doc() = "Native kernels of kvant.";
  bind_strings(m);
}
