/* The formula of a schedule as a list of operations, for evaluation where there is no Python.

   fastflow/program.py records it from the formula itself, so that no schedule is written down twice. Values are
   numbered: 0 is t, 1 is 1 - t, then come the constants, then the result of each instruction in turn. */
#ifndef FF_PROGRAM_H
#define FF_PROGRAM_H

#include <stdint.h>

enum { FF_PROGRAM_VALUES = 128, FF_PROGRAM_OUTPUTS = 5 };

typedef struct {
    int32_t operation, a, b;
} ff_instruction;

typedef struct {
    const double *constants;
    const ff_instruction *instructions;
    int32_t num_constants, num_instructions; /* both together at most FF_PROGRAM_VALUES - 2 */
    int32_t outputs[FF_PROGRAM_OUTPUTS];     /* alpha, beta, d_alpha, d_beta, alpha_d_alpha */
} ff_program;

/* Name of an operation by its code, NULL beyond the last. */
const char *ff_operation_name(int operation);

/* Whether every number in the program names a value before its use. */
int ff_program_valid(const ff_program *program);

/* Evaluates a valid program. */
void ff_program_run(const ff_program *program, double t, double outputs[FF_PROGRAM_OUTPUTS]);

#endif
