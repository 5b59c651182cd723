/* The storage types that matrices can hold exactly, each with the kernels of storages.inc.h. */
#define FF_S bf16
#include "storages.inc.h"
#undef FF_S
#define FF_S u8
#include "storages.inc.h"
#undef FF_S
#define FF_S i8
#include "storages.inc.h"
#undef FF_S
