// What llama.cpp shows while it runs: its evaluation callback sees every product of a weight with activations. The
// observer sums second moments of the activations, and disturbs products to learn how much the predictions answer.
//
// Source: ggml `ggml.h` (struct ggml_tensor), `ggml-backend.h` (ggml_backend_sched_eval_callback).
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvant/linalg.h"

namespace kvant {

// `ggml_tensor`, 336 bytes; runtime/observer.py compares it with tensors that the engine made.
struct EngineTensor {
    int32_t type;
    void* buffer;
    int64_t ne[4];  // elements, the contiguous dimension first
    size_t nb[4];   // bytes from one to the next
    int32_t op, op_params[16], flags;
    EngineTensor* src[10];
    EngineTensor* view_src;
    size_t view_offs;
    char* data;
    char name[64];
    void* extra;
    char padding[8];
};
static_assert(sizeof(EngineTensor) == 336 && offsetof(EngineTensor, src) == 152 && offsetof(EngineTensor, name) == 256);

// How a weight takes part.
enum class Role { linear, experts, lookup };

// A weight [stack, rows, columns] that was multiplied or looked up in; `input` tells apart what it was multiplied with.
struct Seen {
    std::string name;
    Role role;
    int64_t columns, rows, stack;
    uint64_t input;
};

// Where the inputs x of one weight are summed up; memory of others.
struct Sums {
    int64_t columns, stack;
    float* moments;   // [stack, columns, columns], lower triangles: sum of w x x^T; or null
    double* squares;  // [stack, columns]: sum of x^2
    double* counts;   // [stack]: inputs seen
    int64_t layer;    // whose attention weighs the tokens, too: by how much of it they get; -1 for none
};

// Errors put on the products of one weight, those that a weight error of independent signs would make:
// E[s][r][j] = scale[s][r] * sign.
struct Disturbance {
    std::vector<float> scales;  // [stack, rows]
    int64_t rows, stack;
    int64_t first_sign;
    double energy =
        0;  // mean over rows of the squared errors of products, summed over tokens; of rows looked up, squares
};

class Observer {
public:
    Observer(int32_t mul_mat, int32_t mul_mat_id, int32_t get_rows, int32_t soft_max, LinearKernels kernels,
             int threads);

    // ggml_backend_sched_eval_callback; `self` is the observer.
    static bool callback(EngineTensor* node, bool ask, void* self);

    // Add what waits for an attention that was not shown.
    void finish();

    std::map<std::string, Sums, std::less<>> sums;
    std::map<std::pair<std::string, Role>, Disturbance> disturbances;
    std::vector<float> weights;  // of the tokens of the next batch
    std::vector<Seen> seen;
    bool is_listening = false;
    std::string complaint;  // why the last run was stopped

private:
    bool on(const EngineTensor& node, bool ask);
    bool role_of(const EngineTensor& node, Role& role) const;
    void note(const EngineTensor& node, Role role);
    void add_linear(const EngineTensor& x, const Sums& into);
    void add_experts(const EngineTensor& x, const EngineTensor& ids, const Sums& into);
    void add_squares(const Sums& into, int64_t slot, const std::vector<const float*>& rows);
    void add_rows(const Sums& into, int64_t slot, const std::vector<const float*>& rows,
                  const std::vector<float>& shares);
    void disturb(const EngineTensor& node, Role role, Disturbance& error);
    float weight_of(const EngineTensor& x, int64_t i1, int64_t i2, int64_t i3) const;
    int64_t layer_of_attention(const EngineTensor& node) const;
    void attend(const EngineTensor& node, int64_t layer);
    void add_waiting(int64_t layer, const std::vector<float>& received);
    std::vector<float> projections(const EngineTensor& x, int64_t count, const Disturbance& error) const;

    // Inputs that wait for the weights of their tokens.
    struct Waiting {
        const Sums* into;
        std::vector<float> rows;
    };

    int32_t mul_mat_, mul_mat_id_, get_rows_, soft_max_;
    std::multimap<int64_t, Waiting> waiting_;
    LinearKernels kernels_;
    int threads_;
    std::vector<float> signs_, scratch_;
};

}  // namespace kvant
