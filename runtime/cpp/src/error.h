// The library's one exception: a status and its sentence. The C interface is where it ends.
#pragma once

#include <paramorph.h>

#include <string>
#include <utility>

namespace paramorph {

struct Error {
    paramorph_status status;
    std::string message;
};

[[noreturn]] inline void refuse(paramorph_status status, std::string message) {
    throw Error{status, std::move(message)};
}

}  // namespace paramorph
