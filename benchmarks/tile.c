/* out (48, 32) = w (48, 256) times x (256, 32), all float32: what a tile of the kernels multiplies, as a C loop.

   ROWS and LANES are the shape that teachllama/kernels/shapes.py has for the processor, and VECTOR the bytes of one of
   its registers, so that the sums stay in registers here as well. `compare.py` compiles it with -O3 -march=native. */

typedef float vector __attribute__((vector_size(VECTOR), aligned(4)));
enum { N = 256, WIDTH = 32, PER = VECTOR / 4, VECTORS = LANES / PER };

static inline __attribute__((always_inline)) void rows(const float *w, const float *x, float *out, int n_rows) {
  for (int lane = 0; lane < WIDTH; lane += LANES) {
    vector sums[ROWS][VECTORS] = {0};
    for (int k = 0; k < N; k++)
#pragma GCC unroll 16
      for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
          sums[r][v] += w[N * r + k] * *(const vector *)(x + WIDTH * k + lane + PER * v);
    for (int r = 0; r < n_rows; r++)
      for (int v = 0; v < VECTORS; v++) *(vector *)(out + WIDTH * r + lane + PER * v) = sums[r][v];
  }
}

void products(const float *w, const float *x, float *out, long times) {
  for (long i = 0; i < times; i++) {
    for (int r = 0; r < 48; r += ROWS) rows(w + N * r, x, out + WIDTH * r, ROWS);
    __asm__ volatile("" ::: "memory"); /* each product is made, though the last would do */
  }
}
