/* How a query's logits keep their accuracy in the compute type FF_T, settled once for each query and call.

   The fast form of a logit is a = q.mu' - h |mu'|^2 + log C with q = (beta/D) e and h = beta^2/(2D), short of the
   query's base -|e|^2/(2D). As t -> 1 it cancels, and two measures keep the result at the accuracy of the type:

   smooth queries   where the rounding of a is small beside one, only the pairs whose error matters, those of large
                    weight and large terms, have their logit computed again by residuals in float64;
   sharp queries    otherwise the weights live on a few points: a, scaled to distances, at most screens. What may
                    carry weight is computed by residuals in float64, and summed in float64.
   Included once for each compute type (with any storage type). */

#ifndef FF_TREATMENT
#define FF_TREATMENT
typedef struct {
    coefficients exact;     /* of the exact logit, by residuals */
    double scale;           /* logit = scale * a + base */
    double base;            /* of smooth queries, to what the exact logits leave out */
    double square;          /* factor h of |mu'|^2 in a */
    double window;          /* sharp: screen at the largest a less this; infinite where nothing is screened out */
    double suspect;         /* smooth: recompute where p (suspect_terms + 2 h |mu'|^2) exceeds this */
    double dot_error;       /* what q.mu' may be off by; sharp, with own variances: e.mu' times beta */
    double heavy;           /* smooth: a weight above this is summed in float64; infinite where none need be */
    double terms;           /* typical size of the parts that q.mu' is summed from: they may cancel */
    int sharp;
} treatment;

/* What a of a smooth query rounds by, beside the square of the point: its own size or what the dot product cancels
   from. */
static inline double suspect_terms(const treatment *b, double a) { return fabs(a) > b->terms ? fabs(a) : b->terms; }

/* Whether any weight of a smooth query can be suspect, p being at most one. */
static inline int may_be_suspect(const ff_points *points, const treatment *b, double largest) {
    return suspect_terms(b, largest) + 2.0 * b->square * points->largest_square > b->suspect;
}

/* How exact the arithmetic of dot products and sums is. */
typedef struct {
    double dot;   /* a dot product is off by at most so much of |q| |mu'|, */
    double limit; /* of which a logit of a smooth query may have so much */
    double unit;  /* a typical logit is off by so much of its terms */
    /* Ratios of signal to noise of a dimension, beta |mu'| / sqrt(D size): a sum of p mu' loses digits by it against e, in
       the residual e - beta mean. Beyond the first, heavy weights are summed in float64; beyond the second, all. */
    double close, ratio;
} roundoff;
/* Where the first of these is in float32, and so where a residual is a difference of what points contribute. */
static const double CLOSE_RATIO = 0.2;
#endif

/* That of the compute type, u its unit roundoff: sums of `size` products of factors that may be rounded too, in short sums
   of random roundings. Beyond a quarter of a nat its weights are not to be trusted. Some ten roundings of a sum must stay
   below the accuracy asked for. */
static inline roundoff NAME_ST(roundoff)(int64_t size) {
    const double u = sizeof(FF_TT) == 4 ? 0x1p-24 : 0x1p-53;
    const int is_narrow = sizeof(FF_TT) == 4;
    return (roundoff){((double)size + 4.0) * u, 0.25, u, is_narrow ? CLOSE_RATIO : INFINITY, is_narrow ? 2.0 : 500.0};
}

/* Nats below the largest logit from which all points together weigh less than what the type rounds by. */
static inline double NAME_ST(negligible)(const ff_points *points) {
    return log((double)points->count) + (sizeof(FF_TT) == 4 ? 18.0 : 38.0);
}

static treatment NAME_ST(settle)(const ff_job *job, const coefficients *c, roundoff u) {
    const ff_points *points = job->points;
    const double size = (double)points->size;
    /* Where points have variances of their own, that of the narrowest, by which roundings weigh most. */
    const double inverse = job->pointwise ? 1.0 / (c->variance + c->slope * points->narrowest) : 2.0 * c->precision;
    const double largest = sqrt(points->largest_square);
    treatment b = {.exact = *c};

    const double query = fabs(c->beta) * inverse * c->norm;
    const double ratio = fabs(c->beta) * sqrt(inverse * points->mean_square / size);
    b.dot_error = u.dot * query * largest;
    b.terms = 2.0 * query * largest / sqrt(size);
    b.sharp = !(b.dot_error <= u.limit && ratio <= u.ratio && query < 1e30 && inverse < 1e30); /* q must not overflow */
    if (!b.sharp) {
        b.scale = 1.0;
        b.base = c->is_far || job->pointwise ? 0.0 : -c->precision * c->norm * c->norm;
        b.square = 0.5 * c->beta * c->beta * inverse;
        /* A weight may be off by so much: by a sixteenth where a float32 query lies close to its points. */
        b.suspect = (sizeof(FF_TT) == 4 ? (ratio > CLOSE_RATIO ? 2.5e-7 : 4e-6) : 5e-14) / u.unit;
        b.heavy = ratio > u.close ? 0.125 : INFINITY;
    } else {
        b.scale = c->beta * c->beta * inverse;
        b.square = 0.5;
        const double bound = u.dot * c->norm / fabs(c->beta) * largest + 2.0 * u.unit * points->largest_square;
        const double dropped = NAME_ST(negligible)(points);
        b.window = 2.0 * bound + dropped / b.scale;
        b.heavy = INFINITY;
        /* Where the screen would overflow the compute type it is left out, and everything computed exactly. */
        const double limit = sizeof(FF_TT) == 4 ? 1e30 : 1e300;
        if (!(c->norm / fabs(c->beta) * (largest + 1.0) < limit && dropped / b.scale < limit)) {
            b.window = INFINITY;
            b.scale = 1.0;
            b.square = 0.0;
        }
    }
    if (job->pointwise && b.sharp) {
        /* The screen is a logit, off by no more than dot_error / D_j. */
        b.dot_error = u.dot * fabs(c->beta) * c->norm * largest;
        b.window = c->norm < 1e30 && inverse < 1e100 ? NAME_ST(negligible)(points) : INFINITY;
    }
    return b;
}
