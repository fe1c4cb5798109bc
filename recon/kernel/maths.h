// Small helpers without the standard library's templates: the linker would merge their instances across instruction sets.
#pragma once

namespace {

template <typename T>
T smaller(T a, T b) { return b < a ? b : a; }
template <typename T>
T larger(T a, T b) { return a < b ? b : a; }
template <typename T>
T clamped(T x, T low, T high) { return x < low ? low : (high < x ? high : x); }

}  // namespace
