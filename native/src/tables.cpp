// The constants of codebooks.h for Python: one place holds them, and the NumPy twins read them from here.
#include <nanobind/nanobind.h>

#include "kvant/codebooks.h"

namespace nb = nanobind;

namespace {

template <class T, std::size_t N>
void add(nb::dict& all, const char* name, const kvant::codebooks::Constants<T, N>& constants) {
    all[name] = nb::bytes(constants.at, N);
}

template <std::size_t N>
void add(nb::dict& all, const char* name, const std::uint16_t (&codes)[N]) {
    all[name] = nb::bytes(reinterpret_cast<const char*>(codes), sizeof codes);
}

nb::dict codebooks() {
    using namespace kvant::codebooks;
    nb::dict all;
    add(all, "iq2xxs", iq2xxs);
    add(all, "iq2xs", iq2xs);
    add(all, "iq2s", iq2s);
    add(all, "iq3xxs", iq3xxs);
    add(all, "iq3s", iq3s);
    add(all, "iq1s", iq1s);
    add(all, "iq2xxs_codes", iq2xxs_codes);
    add(all, "iq2xs_codes", iq2xs_codes);
    add(all, "iq2s_codes", iq2s_codes);
    add(all, "iq3xxs_codes", iq3xxs_codes);
    add(all, "iq3s_codes", iq3s_codes);
    add(all, "iq1s_codes", iq1s_codes);
    add(all, "even_signs", even_signs);
    add(all, "iq4nl_values", iq4nl_values);
    add(all, "e2m1_values", e2m1_values);
    return all;
}

}  // namespace

void bind_tables(nb::module_& m) {
    m.def("codebooks", &codebooks,
          "Points of the codebooks and values of the 4-bit levels, one byte per weight; `..._codes`: points as 16-bit "
          "codes.");
}
