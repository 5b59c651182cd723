/* The kernels of one pair of storage type FF_S and compute type FF_T. */
#define FF_LOAD_T FF_PASTE3(FF_T, load, FF_S)
#define FF_CENTRE_T FF_PASTE(centre_, FF_T)
#include "treatment.inc.h"
#ifndef FF_MATRIX
#include "few.inc.h"
#endif
#include "batch.inc.h"
#undef FF_LOAD_T
#undef FF_CENTRE_T
