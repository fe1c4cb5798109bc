// Real spherical harmonics of 3DGS's order and signs as polynomials of the unit direction, sixteen splats at a time.
#pragma once
#include "vector.h"

namespace {

inline void harmonics(int degree, Lanes x, Lanes y, Lanes z, Lanes basis[16]) {
  basis[0] = set(0.28209479177387814f);
  if (degree < 1) return;
  const Lanes c1 = set(0.4886025119029199f), none = set(0.0f);
  basis[1] = none - c1 * y;
  basis[2] = c1 * z;
  basis[3] = none - c1 * x;
  if (degree < 2) return;
  const Lanes xx = x * x, yy = y * y, zz = z * z;
  const Lanes c2 = set(1.0925484305920792f), two = set(2.0f), three = set(3.0f), four = set(4.0f);
  basis[4] = c2 * x * y;
  basis[5] = none - c2 * y * z;
  basis[6] = set(0.31539156525252005f) * (two * zz - xx - yy);
  basis[7] = none - c2 * x * z;
  basis[8] = set(0.5f) * c2 * (xx - yy);
  if (degree < 3) return;
  const Lanes c33 = set(0.5900435899266435f), c31 = set(0.4570457994644658f);
  basis[9] = none - c33 * y * (three * xx - yy);
  basis[10] = set(2.890611442640554f) * x * y * z;
  basis[11] = none - c31 * y * (four * zz - xx - yy);
  basis[12] = set(0.3731763325901154f) * z * (two * zz - three * xx - three * yy);
  basis[13] = none - c31 * x * (four * zz - xx - yy);
  basis[14] = set(1.445305721320277f) * z * (xx - yy);
  basis[15] = none - c33 * x * (xx - three * yy);
}

inline void harmonics_derivative(int degree, Lanes x, Lanes y, Lanes z, Lanes by_x[16], Lanes by_y[16],
                                 Lanes by_z[16]) {
  const Lanes none = set(0.0f);
  by_x[0] = by_y[0] = by_z[0] = none;
  if (degree < 1) return;
  const Lanes c1 = set(0.4886025119029199f);
  by_x[1] = none, by_y[1] = none - c1, by_z[1] = none;
  by_x[2] = none, by_y[2] = none, by_z[2] = c1;
  by_x[3] = none - c1, by_y[3] = none, by_z[3] = none;
  if (degree < 2) return;
  const Lanes xx = x * x, yy = y * y, zz = z * z;
  const Lanes c2 = set(1.0925484305920792f), c20 = set(0.31539156525252005f);
  const Lanes two = set(2.0f), three = set(3.0f), four = set(4.0f), six = set(6.0f), eight = set(8.0f);
  by_x[4] = c2 * y, by_y[4] = c2 * x, by_z[4] = none;
  by_x[5] = none, by_y[5] = none - c2 * z, by_z[5] = none - c2 * y;
  by_x[6] = none - two * c20 * x, by_y[6] = none - two * c20 * y, by_z[6] = four * c20 * z;
  by_x[7] = none - c2 * z, by_y[7] = none, by_z[7] = none - c2 * x;
  by_x[8] = c2 * x, by_y[8] = none - c2 * y, by_z[8] = none;
  if (degree < 3) return;
  const Lanes c3 = set(0.5900435899266435f), c31 = set(2.890611442640554f), c32 = set(0.4570457994644658f);
  const Lanes c33 = set(0.3731763325901154f), c35 = set(1.445305721320277f);
  by_x[9] = none - c3 * six * x * y, by_y[9] = none - c3 * three * (xx - yy), by_z[9] = none;
  by_x[10] = c31 * y * z, by_y[10] = c31 * x * z, by_z[10] = c31 * x * y;
  by_x[11] = c32 * two * x * y, by_y[11] = none - c32 * (four * zz - xx - three * yy);
  by_z[11] = none - c32 * eight * y * z;
  by_x[12] = none - c33 * six * x * z, by_y[12] = none - c33 * six * y * z;
  by_z[12] = c33 * (six * zz - three * xx - three * yy);
  by_x[13] = none - c32 * (four * zz - three * xx - yy), by_y[13] = c32 * two * x * y;
  by_z[13] = none - c32 * eight * x * z;
  by_x[14] = c35 * two * x * z, by_y[14] = none - c35 * two * y * z, by_z[14] = c35 * (xx - yy);
  by_x[15] = none - c3 * three * (xx - yy), by_y[15] = c3 * six * x * y, by_z[15] = none;
}

}  // namespace
