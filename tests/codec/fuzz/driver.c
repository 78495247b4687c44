/* A small coverage-guided fuzzer, for machines with gcc alone; clang brings libFuzzer, which runs the same target.
 *
 * gcc -fsanitize-coverage=trace-pc calls __sanitizer_cov_trace_pc at every edge of the code under test. An input that
 * reaches a pair of places not seen before joins the corpus; inputs are mutated from the corpus until the time is up.
 *
 *     fuzz SECONDS [SEED]
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PLACES = 1 << 13, CORPUS = 4096, LONGEST = 512 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_cov_trace_pc(void);
void __asan_on_error(void);

struct input {
    size_t size;
    uint8_t bytes[LONGEST];
};

static uint8_t seen[PLACES], now[PLACES];
static uintptr_t last;
static struct input corpus[CORPUS], current;
static int kept;
static uint64_t state;

void __sanitizer_cov_trace_pc(void)
{
    uintptr_t place = (uintptr_t)__builtin_return_address(0);
    now[(place ^ last) & (PLACES - 1)] = 1;
    last = place >> 1;
}

/* Show the input that did it, so that it can become a test. */
void __asan_on_error(void)
{
    fprintf(stderr, "input of LLVMFuzzerTestOneInput:");
    for (size_t i = 0; i < current.size; i++)
        fprintf(stderr, " %02x", current.bytes[i]);
    fprintf(stderr, "\n");
}

static void on_abort(int signal)
{
    (void)signal;
    __asan_on_error();
}

static uint64_t draw(uint64_t below)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % below;
}

static void mutate(struct input *input)
{
    static const uint8_t likely[] = {0, 1, 0x7f, 0x80, 0xff, 64, 63, 31};
    for (uint64_t turns = 1 + draw(6); turns > 0; turns--) {
        size_t at = (size_t)draw(input->size);
        switch (draw(6)) {
        case 0:
            input->bytes[at] ^= (uint8_t)(1 << draw(8));
            break;
        case 1:
            input->bytes[at] = (uint8_t)draw(256);
            break;
        case 2:
            input->bytes[at] = likely[draw(sizeof likely)];
            break;
        case 3:
            if (input->size > 9)
                input->size -= (size_t)draw(input->size - 9) / 2;
            break;
        case 4:
            while (input->size < LONGEST && draw(12))
                input->bytes[input->size++] = (uint8_t)draw(256);
            break;
        default: { /* a piece of another one */
            const struct input *other = &corpus[draw((uint64_t)kept)];
            size_t from = (size_t)draw(other->size), n = other->size - from;
            n = n > input->size - at ? input->size - at : n;
            memcpy(input->bytes + at, other->bytes + from, n);
        }
        }
    }
}

static int run(void)
{
    int fresh = 0;
    memset(now, 0, sizeof now);
    last = 0;
    LLVMFuzzerTestOneInput(current.bytes, current.size);
    for (int i = 0; i < PLACES; i++) {
        fresh += now[i] && !seen[i];
        seen[i] |= now[i];
    }
    return fresh;
}

int main(int argc, char **argv)
{
    long seconds = argc > 1 ? atol(argv[1]) : 60, runs = 0;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    signal(SIGABRT, on_abort); /* then the process ends */
    time_t end = time(NULL) + seconds;
    for (int which = 0; which < 7; which++) { /* one short input for each decoder */
        struct input first = {.size = 40, .bytes = {(uint8_t)which, 0, 1, 0, 0, 9, 0, 0, 0}};
        corpus[kept++] = first;
    }
    for (; time(NULL) < end; runs++) {
        current = corpus[draw((uint64_t)kept)];
        if (runs >= kept)
            mutate(&current);
        if (run() && kept < CORPUS)
            corpus[kept++] = current;
    }
    int places = 0;
    for (int i = 0; i < PLACES; i++)
        places += seen[i];
    printf("fuzz: %ld inputs in %ld s, %d kept, %d edges reached, no fault\n", runs, seconds, kept, places);
    return runs < 1000;
}
