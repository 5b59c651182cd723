/* The kernels of one storage type FF_S, for every compute type that it has. */
#include "storage.inc.h"
#include "low.inc.h"
#include "low_few.inc.h"
#include "general.inc.h"
#ifndef FF_WIDE
#define FF_T f32
#include "pair.inc.h"
#undef FF_T
#endif
#define FF_T f64
#include "pair.inc.h"
#undef FF_T
