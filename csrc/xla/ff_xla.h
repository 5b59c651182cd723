/* Handlers by which XLA evaluates a field without Python: its velocity, and the product of its Jacobian with a
   direction, where all points share one variance and nothing has a covariance.

   A compiled program knows a field by a number, for it may outlive the field: one that is gone is an error. */
#ifndef FF_XLA_H
#define FF_XLA_H

#include "ff_field.h"
#include "ff_xla_abi.h"

/* Makes a field known by a number of the caller's choice. All that it points to must outlive its withdrawal. */
int ff_xla_publish(int64_t number, const ff_field *field, int num_threads);

/* Withdraws a field, after the calls that are at work with it have ended. */
void ff_xla_withdraw(int64_t number);

/* (x (B, D), t (B or 1)) -> (B, D), attribute `field`: the number. */
ff_xla_error *ff_xla_velocity(ff_xla_call *call);

/* (x (B, D), t (B or 1), u (B, D)) -> (B, D): the Jacobian, which is symmetric for such fields, times u. */
ff_xla_error *ff_xla_product(ff_xla_call *call);

#endif
