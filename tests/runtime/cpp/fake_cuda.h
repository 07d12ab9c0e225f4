// What the fake TensorRT asks of the fake driver.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <functional>

// Whether the environment variable FAKE_FAIL names this function.
bool fake_fails(const char* function);

// Puts work on a stream; like all work, it is done when somebody waits for the stream.
void fake_enqueue(CUstream stream, std::function<void()> work);

// Whether these bytes lie in one allocation on the device.
bool fake_owns(const void* address, std::size_t bytes);
