// Binding of the observer of llama.cpp's evaluation: memory for sums is Python's, and kept as long as the observer.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvant/dispatch.h"
#include "kvant/observer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using Moments = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Squares = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const char* role_name(Role role) {
    return role == Role::linear ? "linear" : role == Role::experts ? "experts" : "lookup";
}

Role role_of(const std::string& name) {
    for (const Role role : {Role::linear, Role::experts, Role::lookup})
        if (name == role_name(role)) return role;
    throw std::invalid_argument("no role is called " + name);
}

class Bound {
public:
    Bound(int mul_mat, int mul_mat_id, int get_rows, int soft_max, const std::string& isa, int threads)
        : observer_(mul_mat, mul_mat_id, get_rows, soft_max, find_linear(isa), threads) {}

    uintptr_t self() const { return reinterpret_cast<uintptr_t>(&observer_); }

    static uintptr_t callback() { return reinterpret_cast<uintptr_t>(&Observer::callback); }

    void listen(bool on) {
        observer_.is_listening = on;
        if (on) observer_.seen.clear();
    }

    nb::list seen() const {
        nb::list all;
        for (const Seen& s : observer_.seen)
            all.append(nb::make_tuple(s.name, role_name(s.role), s.columns, s.rows, s.stack, s.input));
        return all;
    }

    void weigh(const Weights& weights) { observer_.weights.assign(weights.data(), weights.data() + weights.shape(0)); }

    void add(const std::string& name, const std::optional<Moments>& moments, const Squares& squares,
             const Counts& counts, int64_t layer) {
        const int64_t stack = squares.shape(0), n = squares.shape(1);
        const bool fits = (int64_t)counts.shape(0) == stack &&
                          (!moments || ((int64_t)moments->shape(0) == stack && (int64_t)moments->shape(1) == n &&
                                        (int64_t)moments->shape(2) == n));
        if (!fits) throw std::invalid_argument("sums do not fit one another");
        observer_.sums[name] = {n, stack, moments ? moments->data() : nullptr, squares.data(), counts.data(), layer};
        held_.append(nb::make_tuple(moments, squares, counts));
    }

    void forget() {
        observer_.sums.clear();
        held_ = nb::list();
    }

    void disturb(const std::string& name, const std::string& role, const Scales& scales, int64_t first_sign) {
        if (first_sign < 0) throw std::invalid_argument("signs begin at 0");
        const int64_t stack = scales.shape(0), rows = scales.shape(1);
        observer_.disturbances[{name, role_of(role)}] = {
            std::vector<float>(scales.data(), scales.data() + stack * rows), rows, stack, first_sign};
    }

    nb::dict calm() {
        nb::dict energies;
        for (const auto& [of, error] : observer_.disturbances)
            energies[nb::make_tuple(of.first, role_name(of.second))] = error.energy;
        observer_.disturbances.clear();
        return energies;
    }

    void finish() { observer_.finish(); }

    std::string complaint() {
        std::string said;
        said.swap(observer_.complaint);
        return said;
    }

private:
    Observer observer_;
    nb::list held_;
};

nb::dict read_tensor(uintptr_t address) {
    // An address is all that Python knows of it. NOLINTNEXTLINE(performance-no-int-to-ptr)
    const EngineTensor& t = *reinterpret_cast<const EngineTensor*>(address);
    nb::list elements, bytes;
    for (int i = 0; i < 4; ++i) elements.append(t.ne[i]), bytes.append(t.nb[i]);
    nb::dict found;
    found["type"] = t.type;
    found["ne"] = elements;
    found["nb"] = bytes;
    found["op"] = t.op;
    found["src"] = nb::make_tuple(reinterpret_cast<uintptr_t>(t.src[0]), reinterpret_cast<uintptr_t>(t.src[1]),
                                  reinterpret_cast<uintptr_t>(t.src[2]));
    found["data"] = reinterpret_cast<uintptr_t>(t.data);
    found["name"] = std::string(t.name, strnlen(t.name, sizeof t.name));
    return found;
}

}  // namespace
}  // namespace kvant

void bind_observer(nb::module_& m) {
    using kvant::Bound;
    nb::class_<Bound>(m, "Observer", "Sums and disturbs what llama.cpp multiplies, from its evaluation callback.")
        .def(nb::init<int, int, int, int, const std::string&, int>(), "mul_mat"_a, "mul_mat_id"_a, "get_rows"_a,
             "soft_max"_a, "isa"_a, "threads"_a)
        .def_prop_ro("address", &Bound::self, "Of the observer: the callback's user data.")
        .def_prop_ro_static(
            "callback", [](nb::handle) { return Bound::callback(); }, "Address of the callback.")
        .def("listen", &Bound::listen, "on"_a, "Note which weights take part, or stop to.")
        .def("seen", &Bound::seen, "Per product: name, role, columns, rows, stack, what tells its input apart.")
        .def("weigh", &Bound::weigh, "weights"_a.noconvert(), "Weights of the next batch's tokens, float32 [tokens].")
        .def("add", &Bound::add, "name"_a, "moments"_a.none().noconvert(), "squares"_a.noconvert(),
             "counts"_a.noconvert(), "layer"_a,
             "Sum up a weight's inputs into these arrays from now on; attention of a layer weighs them, of -1 none.")
        .def("finish", &Bound::finish, "Add what waits for an attention that was not shown.")
        .def("forget", &Bound::forget, "Sum up nothing any more.")
        .def("disturb", &Bound::disturb, "name"_a, "role"_a, "scales"_a.noconvert(), "first_sign"_a,
             "Put errors of these sizes, float32 [stack, rows], on a weight's products from now on.")
        .def("calm", &Bound::calm, "Stop all disturbances; return their energies by name and role.")
        .def("complaint", &Bound::complaint, "Why the last run was stopped; empty if it was not.");
    m.def("read_engine_tensor", &kvant::read_tensor, "address"_a, "What the observer reads of a tensor of the engine.");
}
