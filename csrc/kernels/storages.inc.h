/* The kernels of one storage type FF_S, for every compute type that it has; beside matrices the batch kernel alone. */
#include "storage.inc.h"
#ifndef FF_MATRIX
#include "low.inc.h"
#include "low_few.inc.h"
#include "general.inc.h"
#endif
#ifndef FF_WIDE
#define FF_T f32
#include "pair.inc.h"
#undef FF_T
#endif
#ifndef FF_MATRIX
#define FF_T f64
#include "pair.inc.h"
#undef FF_T
#endif
