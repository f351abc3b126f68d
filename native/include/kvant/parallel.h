// Work over threads. What a piece of work throws, most likely for want of memory, reaches the caller: a thread that let
// it out would end the process.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace kvant {

inline int64_t thread_count(int threads) {
    return threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
}

// Run work(i) for i < count on up to `threads` threads (0: one per core).
template <class F>
void over_items(int64_t count, int threads, F work) {
    std::atomic<int64_t> next{0};
    std::exception_ptr thrown;
    std::mutex first;
    const auto loop = [&] {
        try {
            for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
        } catch (...) {
            next = count;
            const std::lock_guard<std::mutex> lock(first);
            if (!thrown) thrown = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    const int64_t wanted = std::min(thread_count(threads), count);
    try {
        helpers.reserve(wanted > 1 ? wanted - 1 : 0);
        for (int64_t i = 1; i < wanted; ++i) helpers.emplace_back(loop);
    } catch (const std::system_error&) {
        // The system gives no more threads: those there are do the work.
    } catch (const std::bad_alloc&) {
        // Nor memory for them. Thrown out of here while some run, it would end the process.
    }
    loop();
    for (std::thread& helper : helpers) helper.join();
    if (thrown) std::rethrow_exception(thrown);
}

}  // namespace kvant
