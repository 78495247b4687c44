/* Histograms of a vector and of the parts that lie end to end in it, by the leading bits of each entry, with energies. */
#include "gaussiank.h"

/* One bin, in one line of the cache. Two energies, because equal bins in a row would wait for each other's sum. */
typedef struct {
    int64_t counts[2]; /* by sign */
    double energies[2];
} gk_bin;

/* low and high: the bins in use. */
static void fill(gk_bin *table, const float *vector, int64_t numel, int32_t bits, int32_t *low, int32_t *high)
{
    int32_t first = 256 << bits, last = -1, shift = 23 - bits;
    for (int64_t i = 0; i < numel; i++) {
        int32_t code = gk_bits(vector[i]), bin = (code & GK_MAGNITUDE) >> shift;
        double value = vector[i];
        table[bin].counts[(uint32_t)code >> 31]++;
        table[bin].energies[i & 1] += value * value;
        first = bin < first ? bin : first;
        last = bin > last ? bin : last;
    }
    *low = first;
    *high = last;
}

/* counts [2][bins] and energy [bins] of the whole vector, part_counts [parts][2][part_bins] and part_energy
   [parts][part_bins] of each part; all zeros before, with bins = 256 << bits. Energies of infinities, of NaN and of
   what is below the smallest normal number are left out. scratch: 4 * bins * 8 bytes, zeros before and after. */
GK_EXPORT int32_t gk_magnitudes(const float *vector, const int64_t *numels, int64_t parts, int32_t bits,
                                int32_t part_bits, int64_t *counts, double *energy, int64_t *part_counts,
                                double *part_energy, void *scratch)
{
    if (bits < 0 || bits > 7 || part_bits < 0 || part_bits > bits)
        return GK_ARGUMENT;
    int32_t bins = 256 << bits, coarse = 256 << part_bits, fold = bits - part_bits, one = 1 << bits;
    gk_bin *table = (gk_bin *)scratch;
    for (int64_t p = 0; p < parts; p++) {
        int32_t low, high;
        fill(table, vector, numels[p], bits, &low, &high);
        for (int32_t bin = low; bin <= high; bin++) {
            double sum = table[bin].energies[0] + table[bin].energies[1];
            for (int32_t sign = 0; sign < 2; sign++) {
                counts[sign * bins + bin] += table[bin].counts[sign];
                part_counts[(2 * p + sign) * coarse + (bin >> fold)] += table[bin].counts[sign];
            }
            if (bin >= one && bin < bins - one) {
                energy[bin] += sum;
                part_energy[p * coarse + (bin >> fold)] += sum;
            }
            table[bin] = (gk_bin){{0, 0}, {0, 0}};
        }
        vector += numels[p];
    }
    return GK_OK;
}
