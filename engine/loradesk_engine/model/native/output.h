/* Where the sums of a chunk go. */

#ifndef LORADESK_OUTPUT_H
#define LORADESK_OUTPUT_H

#include "matrix.h"

/* The outputs of a chunk that are there, from row `first` of the matrix on. y: one row. */
INLINE void put_outputs(const Floats *values, const Matrix *matrix, int64_t first, float *y, int adds) {
    y += matrix->output + first;
    if (first + ROWS <= matrix->rows) {
        for (int vector = 0; vector < VECTORS; vector++)
            store(y + LANES * vector, adds ? load(y + LANES * vector) + values[vector] : values[vector]);
        return;
    }
    float lanes[ROWS];
    for (int vector = 0; vector < VECTORS; vector++) store(lanes + LANES * vector, values[vector]);
    for (int64_t lane = 0; first + lane < matrix->rows; lane++) y[lane] = (adds ? y[lane] : 0) + lanes[lane];
}

#endif
