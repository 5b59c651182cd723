/* Evaluates the programs of ff_program.h with the elementary functions of the C library, which are those of Python's
   math module: the results are those of the formula, bit for bit. */
#include "ff_program.h"

#include <math.h>
#include <stddef.h>

enum {
#define FF_OPERATION(name, value) OPERATION_##name,
#include "ff_operations.def"
#undef FF_OPERATION
    NUM_OPERATIONS
};

static const char *const names[NUM_OPERATIONS] = {
#define FF_OPERATION(name, value) #name,
#include "ff_operations.def"
#undef FF_OPERATION
};

const char *ff_operation_name(int operation) {
    return operation >= 0 && operation < NUM_OPERATIONS ? names[operation] : NULL;
}

int ff_program_valid(const ff_program *program) {
    if (program->num_constants < 0 || program->num_instructions < 0 ||
        (int64_t)program->num_constants + program->num_instructions > FF_PROGRAM_VALUES - 2) {
        return 0;
    }
    int32_t known = 2 + program->num_constants;
    for (int32_t i = 0; i < program->num_instructions; i++, known++) {
        ff_instruction step = program->instructions[i];
        if (step.operation < 0 || step.operation >= NUM_OPERATIONS || step.a < 0 || step.a >= known || step.b < 0 ||
            step.b >= known) {
            return 0;
        }
    }
    for (int k = 0; k < FF_PROGRAM_OUTPUTS; k++) {
        if (program->outputs[k] < 0 || program->outputs[k] >= known) return 0;
    }
    return 1;
}

static double apply(int32_t operation, double a, double b) {
    switch (operation) {
#define FF_OPERATION(name, value) case OPERATION_##name: return value;
#include "ff_operations.def"
#undef FF_OPERATION
    }
    return NAN;
}

void ff_program_run(const ff_program *program, double t, double outputs[FF_PROGRAM_OUTPUTS]) {
    double values[FF_PROGRAM_VALUES];
    values[0] = t;
    values[1] = 1.0 - t;
    double *next = values + 2;
    for (int32_t i = 0; i < program->num_constants; i++) *next++ = program->constants[i];
    for (int32_t i = 0; i < program->num_instructions; i++) {
        ff_instruction step = program->instructions[i];
        *next++ = apply(step.operation, values[step.a], values[step.b]);
    }
    for (int k = 0; k < FF_PROGRAM_OUTPUTS; k++) outputs[k] = values[program->outputs[k]];
}
