#include <nanobind/nanobind.h>

NB_MODULE(_ext, m) { m.doc() = "Native kernels of kvant."; }
