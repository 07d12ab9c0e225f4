// A shared library that is opened when it is needed, and then stays for the life of the program.
#pragma once

#include <dlfcn.h>

#include <string>

#include "error.h"

namespace paramorph {

class Library {
public:
    // `what` it is and what to do where it is missing go into the sentence.
    Library(const std::string& path, const std::string& what, const std::string& advice)
        : path_(path), handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
        if (handle_ == nullptr) {
            refuse(PARAMORPH_MISSING_DEPENDENCY, path + ": expected " + what + ", found none (" +
                                                     dlerror() + "); " + advice + ".");
        }
    }

    template <typename Function>
    Function symbol(const char* name) const {
        void* const address = dlsym(handle_, name);
        if (address == nullptr) {
            refuse(PARAMORPH_MISSING_DEPENDENCY, path_ + ": expected a library with " + name +
                                                     ", found none; install a newer one.");
        }
        return reinterpret_cast<Function>(address);
    }

private:
    std::string path_;
    void* handle_;
};

}  // namespace paramorph
