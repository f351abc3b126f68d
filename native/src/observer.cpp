// Sums and disturbances of what the engine multiplies; see observer.h.
#include "kvant/observer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "kvant/products.h"

namespace kvant {
namespace {

constexpr int32_t type_f32 = 0, type_i32 = 26;  // ggml_type
constexpr int32_t flag_compute = 16;            // ggml_tensor_flag: of a choice of branches, in the one taken
constexpr int64_t sign_count = 1 << 20;
constexpr int64_t most_projections = 4096;  // different rows of signs of one weight; beyond them they come again
constexpr int64_t expert_step = 997;        // rows between the signs of one expert and of the next

const float* row_at(const EngineTensor& x, int64_t i1, int64_t i2, int64_t i3 = 0) {
    return reinterpret_cast<const float*>(x.data + i1 * x.nb[1] + i2 * x.nb[2] + i3 * x.nb[3]);
}

float* output_at(const EngineTensor& y, int64_t i1, int64_t i2) {
    return reinterpret_cast<float*>(y.data + i1 * y.nb[1] + i2 * y.nb[2]);
}

int32_t id_at(const EngineTensor& ids, int64_t i0, int64_t i1) {
    int32_t id;
    memcpy(&id, ids.data + i0 * ids.nb[0] + i1 * ids.nb[1], sizeof id);
    return id;
}

void check_floats(const EngineTensor& x, const char* what) {
    if (x.type != type_f32 || x.nb[0] != sizeof(float) || !x.data)
        throw std::runtime_error(std::string(what) + " of " + x.name + " are not float32 side by side");
}

int64_t stack_of(const EngineTensor& weight) { return weight.ne[2] * weight.ne[3]; }

}  // namespace

Observer::Observer(int32_t mul_mat, int32_t mul_mat_id, int32_t get_rows, int32_t soft_max, LinearKernels kernels,
                   int threads)
    : mul_mat_(mul_mat),
      mul_mat_id_(mul_mat_id),
      get_rows_(get_rows),
      soft_max_(soft_max),
      kernels_(kernels),
      threads_(threads),
      signs_(sign_count) {
    uint64_t state = 0x9e3779b97f4a7c15;  // splitmix64, Steele et al. 2014
    for (float& sign : signs_) {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        sign = (z ^ (z >> 31)) >> 63 ? 1.0f : -1.0f;
    }
}

bool Observer::callback(EngineTensor* node, bool ask, void* self) {
    Observer& observer = *static_cast<Observer*>(self);
    try {
        return observer.on(*node, ask);
    } catch (const std::exception& error) {  // nothing may be thrown through the engine
        observer.complaint = error.what();
        return false;
    }
}

bool Observer::role_of(const EngineTensor& node, Role& role) const {
    if (node.op == mul_mat_) role = Role::linear;
    else if (node.op == mul_mat_id_) role = Role::experts;
    else if (node.op == get_rows_) role = Role::lookup;
    else return false;
    return true;
}

// Asked whether a node's result is wanted, and told it once it is there: to go on, the answer to that is true.
bool Observer::on(const EngineTensor& node, bool ask) {
    if (!(node.flags & flag_compute)) return !ask;
    if (node.op == soft_max_) {
        const int64_t layer = layer_of_attention(node);
        const bool wanted = layer >= 0 && waiting_.count(layer);
        if (!ask && wanted) attend(node, layer);
        return ask ? wanted : true;
    }
    Role role;
    if (!role_of(node, role)) return !ask;
    const EngineTensor& weight = *node.src[0];
    const std::string_view name(weight.name, strnlen(weight.name, sizeof weight.name));
    if (is_listening && ask) note(node, role);
    const auto sum = role == Role::lookup ? sums.end() : sums.find(name);
    const auto error =
        disturbances.empty() ? disturbances.end() : disturbances.find(std::pair{std::string(name), role});
    if (ask) return sum != sums.end() || error != disturbances.end();
    if (sum != sums.end()) {
        if (role == Role::linear) add_linear(*node.src[1], sum->second);
        else add_experts(*node.src[1], *node.src[2], sum->second);
    }
    if (error != disturbances.end()) disturb(node, role, error->second);
    return true;
}

void Observer::note(const EngineTensor& node, Role role) {
    const EngineTensor& weight = *node.src[0];
    seen.push_back(
        {weight.name, role, weight.ne[0], weight.ne[1], stack_of(weight), reinterpret_cast<uint64_t>(node.src[1])});
}

float Observer::weight_of(const EngineTensor& x, int64_t i1, int64_t i2, int64_t i3) const {
    const int64_t tokens = weights.size();
    if (x.ne[1] == tokens) return weights[i1];
    if (x.ne[2] == tokens) return weights[i2];
    const int64_t at = (i3 * x.ne[2] + i2) * x.ne[1] + i1;
    return x.ne[1] * x.ne[2] * x.ne[3] == tokens ? weights[at] : 1.0f;
}

// "kq_soft_max-LAYER", as llama.cpp names attention that is computed step by step.
int64_t Observer::layer_of_attention(const EngineTensor& node) const {
    constexpr std::string_view prefix = "kq_soft_max-";
    const std::string_view name(node.name, strnlen(node.name, sizeof node.name));
    if (name.substr(0, prefix.size()) != prefix) return -1;
    int64_t layer = -1;
    const std::string_view digits = name.substr(prefix.size());
    std::from_chars(digits.data(), digits.data() + digits.size(), layer);
    return layer;
}

// Attention [keys, queries, heads]: a key gets the sum over queries and heads of its squared share.
void Observer::attend(const EngineTensor& node, int64_t layer) {
    check_floats(node, "shares");
    std::vector<float> received(std::min<int64_t>(node.ne[0], (int64_t)weights.size()), 0.0f);
    for (int64_t i3 = 0; i3 < node.ne[3]; ++i3)
        for (int64_t i2 = 0; i2 < node.ne[2]; ++i2)
            for (int64_t i1 = 0; i1 < node.ne[1]; ++i1) {
                const float* row = row_at(node, i1, i2, i3);
                for (size_t t = 0; t < received.size(); ++t) received[t] += row[t] * row[t];
            }
    add_waiting(layer, received);
}

void Observer::finish() {
    while (!waiting_.empty()) add_waiting(waiting_.begin()->first, {});
}

// Token weights are the given ones times 1 + what attention the token gets over the mean.
void Observer::add_waiting(int64_t layer, const std::vector<float>& received) {
    double total = 0;
    for (const float r : received) total += r;
    const auto [first, end] = waiting_.equal_range(layer);
    for (auto it = first; it != end; ++it) {
        const Sums& into = *it->second.into;
        const int64_t n = into.columns, count = it->second.rows.size() / n;
        std::vector<const float*> rows(count);
        std::vector<float> shares(count);
        for (int64_t i = 0; i < count; ++i) {
            rows[i] = it->second.rows.data() + i * n;
            const double more =
                i < (int64_t)received.size() && total > 0 ? received[i] * (double)received.size() / total : 0;
            shares[i] = (i < (int64_t)weights.size() ? weights[i] : 1.0f) * (float)(1 + more);
        }
        add_rows(into, 0, rows, shares);
    }
    waiting_.erase(first, end);
}

void Observer::add_squares(const Sums& into, int64_t slot, const std::vector<const float*>& rows) {
    const int64_t n = into.columns;
    double* squares = into.squares + slot * n;
    for (const float* row : rows)
        for (int64_t j = 0; j < n; ++j) squares[j] += (double)row[j] * row[j];
    into.counts[slot] += (double)rows.size();
}

void Observer::add_rows(const Sums& into, int64_t slot, const std::vector<const float*>& rows,
                        const std::vector<float>& shares) {
    const int64_t n = into.columns, count = rows.size();
    if (!into.moments || !count) return;
    scratch_.resize(count * n);
    for (int64_t i = 0; i < count; ++i) {
        const float root = std::sqrt(shares[i]);
        for (int64_t j = 0; j < n; ++j) scratch_[i * n + j] = root * rows[i][j];
    }
    Product<float, float> product{.a = {scratch_.data(), 1, n},
                                  .b = {scratch_.data(), 1, n},
                                  .m = n,
                                  .n = n,
                                  .k = count,
                                  .c = into.moments + slot * n * n,
                                  .stride = n};
    product.lower = true;
    multiply(kernels_.single, product, threads_);
}

// x [columns, tokens], or [columns, tokens, stack] where a weight has a matrix for each of them.
void Observer::add_linear(const EngineTensor& x, const Sums& into) {
    check_floats(x, "inputs");
    if (x.ne[0] != into.columns || x.ne[2] % into.stack != 0)
        throw std::runtime_error(std::string("inputs ") + x.name + " do not fit their weight");
    const int64_t repeats = x.ne[2] / into.stack;
    for (int64_t slot = 0; slot < into.stack; ++slot) {
        std::vector<const float*> rows;
        std::vector<float> shares;
        for (int64_t i3 = 0; i3 < x.ne[3]; ++i3)
            for (int64_t i2 = slot * repeats; i2 < (slot + 1) * repeats; ++i2)
                for (int64_t i1 = 0; i1 < x.ne[1]; ++i1) {
                    rows.push_back(row_at(x, i1, i2, i3));
                    shares.push_back(weight_of(x, i1, i2, i3));
                }
        add_squares(into, slot, rows);
        if (into.layer >= 0 && into.stack == 1 && rows.size() == weights.size()) {
            Waiting held{&into, std::vector<float>(rows.size() * into.columns)};
            for (size_t i = 0; i < rows.size(); ++i)
                memcpy(held.rows.data() + i * into.columns, rows[i], into.columns * sizeof(float));
            waiting_.emplace(into.layer, std::move(held));
        } else {
            add_rows(into, slot, rows, shares);
        }
    }
}

// x [columns, 1 or experts used, tokens], ids [experts used, tokens].
void Observer::add_experts(const EngineTensor& x, const EngineTensor& ids, const Sums& into) {
    check_floats(x, "inputs");
    if (x.ne[0] != into.columns || ids.type != type_i32)
        throw std::runtime_error(std::string("inputs ") + x.name + " do not fit their weight");
    std::vector<std::vector<const float*>> rows(into.stack);
    std::vector<std::vector<float>> shares(into.stack);
    for (int64_t token = 0; token < ids.ne[1]; ++token)
        for (int64_t used = 0; used < ids.ne[0]; ++used) {
            const int32_t expert = id_at(ids, used, token);
            if (expert < 0 || expert >= into.stack) throw std::runtime_error("an expert's id is beyond their number");
            rows[expert].push_back(row_at(x, used % x.ne[1], token));
            shares[expert].push_back(token < (int64_t)weights.size() ? weights[token] : 1.0f);
        }
    for (int64_t expert = 0; expert < into.stack; ++expert) {
        add_squares(into, expert, rows[expert]);
        add_rows(into, expert, rows[expert], shares[expert]);
    }
}

// Products of all rows of x with rows of signs, [rows of x, count].
std::vector<float> Observer::projections(const EngineTensor& x, int64_t count, const Disturbance& error) const {
    const int64_t n = x.ne[0], tokens = x.ne[1] * x.ne[2] * x.ne[3];
    if (n + most_projections >= sign_count) throw std::runtime_error("a weight has too many columns to be disturbed");
    std::vector<float> packed(tokens * n), found(tokens * count);
    for (int64_t i3 = 0, at = 0; i3 < x.ne[3]; ++i3)
        for (int64_t i2 = 0; i2 < x.ne[2]; ++i2)
            for (int64_t i1 = 0; i1 < x.ne[1]; ++i1, at += n)
                memcpy(packed.data() + at, row_at(x, i1, i2, i3), n * sizeof(float));
    const float* signs = signs_.data() + error.first_sign % (sign_count - n - most_projections);
    // Row r of the signs begins at r: a Toeplitz matrix, whose rows have nothing in common but by chance.
    Product<float, float> product{.a = {packed.data(), n, 1},
                                  .b = {signs, 1, 1},
                                  .m = tokens,
                                  .n = count,
                                  .k = n,
                                  .c = found.data(),
                                  .stride = count};
    product.overwrite = true;
    multiply(kernels_.single, product, threads_);
    return found;
}

void Observer::disturb(const EngineTensor& node, Role role, Disturbance& error) {
    check_floats(node, "products");
    const EngineTensor &weight = *node.src[0], &x = *node.src[1];
    const int64_t rows = error.rows, count = std::min(rows, most_projections);
    double total = 0;
    if (role == Role::lookup) {  // row `id` of the weight's error itself
        if (x.type != type_i32 || weight.ne[1] != rows || error.stack != 1)
            throw std::runtime_error(std::string("look-ups in ") + weight.name + " are not as expected");
        const int64_t n = node.ne[0];
        if (n + most_projections >= sign_count) throw std::runtime_error("a row is too long to be disturbed");
        const float* signs = signs_.data() + error.first_sign % (sign_count - n - most_projections);
        for (int64_t i2 = 0; i2 < x.ne[1]; ++i2)
            for (int64_t i1 = 0; i1 < x.ne[0]; ++i1) {
                const int32_t id = id_at(x, i1, i2);
                if (id < 0 || id >= rows) throw std::runtime_error("a token's id is beyond the vocabulary");
                float* y = output_at(node, i1, i2);
                const float scale = error.scales[id];
                for (int64_t j = 0; j < n; ++j) y[j] += scale * signs[id % most_projections + j];
                total += (double)scale * scale * (double)n;
            }
        error.energy += total;
        return;
    }
    if (node.ne[0] != rows || stack_of(weight) != error.stack)
        throw std::runtime_error(std::string("products of ") + weight.name + " are not as expected");
    check_floats(x, "inputs");
    const std::vector<float> found = projections(x, count, error);
    const auto add = [&](float* y, int64_t from, int64_t slot) {
        const float* z = found.data() + from * count;
        const float* scales = error.scales.data() + slot * rows;
        double sum = 0;
        for (int64_t r = 0; r < rows; ++r) {
            const float e = scales[r] * z[(r + slot * expert_step) % count];
            y[r] += e;
            sum += (double)e * e;
        }
        total += sum / (double)rows;
    };
    if (role == Role::experts) {
        const EngineTensor& ids = *node.src[2];
        for (int64_t token = 0; token < ids.ne[1]; ++token)
            for (int64_t used = 0; used < ids.ne[0]; ++used) {
                const int32_t expert = id_at(ids, used, token);
                if (expert < 0 || expert >= error.stack)
                    throw std::runtime_error("an expert's id is beyond their number");
                add(output_at(node, used, token), token * x.ne[1] + used % x.ne[1], expert);
            }
    } else {
        const int64_t repeats = std::max<int64_t>(1, x.ne[2] / error.stack);
        for (int64_t i2 = 0; i2 < x.ne[2]; ++i2)
            for (int64_t i1 = 0; i1 < x.ne[1]; ++i1)
                add(output_at(node, i1, i2), i2 * x.ne[1] + i1, error.stack > 1 ? i2 / repeats : 0);
    }
    error.energy += total;
}

}  // namespace kvant
