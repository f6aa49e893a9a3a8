/*
 * The machine behind the stand-in: GPUs, clock, faults, and commands that change
 * them. It knows nothing of NVML.
 *
 * Power is a step function of time and energy is its exact integral, so a test
 * knows what it must find. Everything is changed by one-line commands, either
 * one by one through standin_command() or from the file that STANDIN_SCRIPT
 * names, which is run as the library loads. GPUs are numbered as they sit in
 * the machine (0-15); times are ns of the schedule, powers mW, sizes bytes.
 *
 *   reset                            as after loading, without a script
 *   clock manual|real                real: ns since the library was loaded
 *   clock_at NS, advance NS          of the manual clock, which starts at 0
 *   gpus N, order GPU...             which GPUs NVML shows, as index 0, 1, ...
 *   strict_fork 0|1                  1: Unknown in a child forked after init
 *   power GPU NS MW                  draw MW from NS until the next step
 *   reset_energy GPU NS              the counter starts from 0 at NS
 *   freeze_energy GPU NS             the counter stands still from NS
 *   name GPU TEXT, uuid GPU TEXT
 *   mig GPU N, mig_uuid GPU I TEXT   N instances; 0: MIG is off, -1: unknown
 *   lose GPU, restore GPU            every call says GPU_IS_LOST
 *   field GPU ID ERROR TYPE          one field fails, or changes type (-1: not)
 *   fault FUNCTION|* GPU ERROR AFTER TIMES SLEEP_US
 *                                    GPU -1: any; ERROR 0: only slow; TIMES -1: all
 *   clear_faults
 *   SETTING GPU VALUE                one of the settings listed below
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

enum { MAX_GPUS = 16, MAX_MIG = 7, MAX_STEPS = 4096, MAX_FAULTS = 64, MAX_FIELDS = 16, TEXT = 96 };
enum { MAX_FUNCTIONS = 96, MAX_SAMPLES = 120, SAMPLE_NS = 20000000 };

/* Setting and its initial value; names double as commands. */
#define SETTINGS(X) \
    X(utilization, 50) X(memory_utilization, 10) \
    X(memory_used, 1024ll << 20) X(memory_total, 8192ll << 20) X(memory_reserved, 569ll << 20) \
    X(temperature, 60) X(memory_temperature, 65) X(limit, 250000) X(enforced_limit, 250000) \
    X(clock_graphics, 1500) X(clock_sm, 1500) X(clock_memory, 7000) X(clock_video, 1300) \
    X(fan, 40) X(throttle, 0) X(performance_state, 2) X(architecture, 8) \
    X(ecc_corrected_volatile, 0) X(ecc_corrected_aggregate, 0) \
    X(ecc_uncorrected_volatile, 0) X(ecc_uncorrected_aggregate, 0) \
    X(power_mean_ns, 0) X(power_period_ns, 0) \
    X(energy_step, 1) X(energy_period_ns, 0) X(energy_offset, 0)
#define AS_ENUM(name, initial) name,
#define AS_NAME(name, initial) #name,
#define AS_INITIAL(name, initial) initial,
enum setting { SETTINGS(AS_ENUM) SETTING_COUNT };
static const char *const setting_names[] = {SETTINGS(AS_NAME)};
static const int64_t setting_initials[] = {SETTINGS(AS_INITIAL)};

struct handle { int gpu, mig; };                        /* mig -1: the GPU itself */
struct step { int64_t at_ns, power_mw; };
struct field { unsigned id, error; int type; };
struct fault { char function[TEXT]; int gpu, error; int64_t after, times, sleep_us, seen; };
struct counter { const char *function; uint64_t all, of_gpu[MAX_GPUS]; };
struct gpu {
    char name[TEXT], uuid[TEXT], mig_uuid[MAX_MIG][TEXT];
    int64_t value[SETTING_COUNT], reset_at_ns, frozen_at_ns;
    int lost, mig_instances, step_count, field_count;
    struct step steps[MAX_STEPS];
    struct field fields[MAX_FIELDS];
};

static struct gpu gpus[MAX_GPUS];
static struct handle handles[MAX_GPUS][1 + MAX_MIG];
static struct fault faults[MAX_FAULTS];
static struct counter counters[MAX_FUNCTIONS];
static int order[MAX_GPUS], shown, fault_count, references, strict_fork, real_clock;
static int64_t manual_ns, loaded_ns;
static pid_t owner;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }
static void unlock_on_return(int *unused) { (void)unused; unlock(); }
#define LOCKED int locked __attribute__((cleanup(unlock_on_return), unused)) = (lock(), 1)

/* ---- time, power and energy ------------------------------------------- */

static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static int64_t now_ns(void) { return real_clock ? monotonic_ns() - loaded_ns : manual_ns; }

static int64_t refreshed(int64_t at_ns, int64_t period_ns) {
    return period_ns > 0 ? at_ns - at_ns % period_ns : at_ns;
}

static int64_t power_mw(const struct gpu *gpu, int64_t at_ns) {
    int64_t power = 0;
    for (int i = 0; i < gpu->step_count && gpu->steps[i].at_ns <= at_ns; i++) power = gpu->steps[i].power_mw;
    return power;
}

/* Energy from time 0; mW x ns = pJ, which outgrows 64 bits within a day. */
static __int128 energy_pj(const struct gpu *gpu, int64_t until_ns) {
    __int128 sum = 0;
    for (int i = 0; i < gpu->step_count && gpu->steps[i].at_ns < until_ns; i++) {
        int64_t end = i + 1 < gpu->step_count ? gpu->steps[i + 1].at_ns : until_ns;
        sum += (__int128)gpu->steps[i].power_mw * ((end < until_ns ? end : until_ns) - gpu->steps[i].at_ns);
    }
    return sum;
}

static int64_t mean_power_mw(const struct gpu *gpu) {
    int64_t end = refreshed(now_ns(), gpu->value[power_period_ns]);
    int64_t begin = end - gpu->value[power_mean_ns];
    if (begin < 0) begin = 0;
    if (begin >= end) return power_mw(gpu, end);
    return (int64_t)((energy_pj(gpu, end) - energy_pj(gpu, begin)) / (end - begin));
}

static int64_t instant_power_mw(const struct gpu *gpu) {
    return power_mw(gpu, refreshed(now_ns(), gpu->value[power_period_ns]));
}

static uint64_t energy_counter_mj(const struct gpu *gpu) {
    int64_t at = now_ns() < gpu->frozen_at_ns ? now_ns() : gpu->frozen_at_ns;
    int was_reset = at >= gpu->reset_at_ns;
    at = refreshed(at, gpu->value[energy_period_ns]);
    __int128 grown = energy_pj(gpu, at) - (was_reset ? energy_pj(gpu, gpu->reset_at_ns) : 0);
    uint64_t mj = grown > 0 ? (uint64_t)(grown / 1000000000) : 0;
    if (gpu->value[energy_step] > 1) mj -= mj % (uint64_t)gpu->value[energy_step];
    return mj + (was_reset ? 0 : (uint64_t)gpu->value[energy_offset]);
}

/* ---- calls counted, delayed and failed ---------------------------------- */

static void count_call(const char *function, const struct handle *handle) {
    int i = 0;                                   /* __func__ is one address per function */
    while (i < MAX_FUNCTIONS - 1 && counters[i].function && counters[i].function != function) i++;
    counters[i].function = function;
    counters[i].all++;
    if (handle && handle->mig < 0) counters[i].of_gpu[handle->gpu]++;
}

static int hit(struct fault *fault, const char *function, const struct handle *handle) {
    if (strcmp(fault->function, "*") && strcmp(fault->function, function)) return 0;
    if (fault->gpu >= 0 && !(handle && handle->gpu == fault->gpu && handle->mig < 0)) return 0;
    int64_t seen = fault->seen++;
    return seen >= fault->after && (fault->times < 0 || seen < fault->after + fault->times);
}

static void sleep_unlocked(int64_t sleep_us) {
    struct timespec left = {sleep_us / 1000000, sleep_us % 1000000 * 1000};
    unlock();
    while (nanosleep(&left, &left)) {}
    lock();
}

static int run_faults(const char *function, const struct handle *handle) {
    int error = 0;
    int64_t sleep_us = 0;
    for (int i = 0; i < fault_count; i++) {
        if (!hit(&faults[i], function, handle)) continue;
        if (!error) error = faults[i].error;
        sleep_us += faults[i].sleep_us;
    }
    if (sleep_us) sleep_unlocked(sleep_us);
    return error;
}

/* ---- commands ------------------------------------------------------------------ */

static int add_step(struct gpu *gpu, int64_t at_ns, int64_t power) {
    int i = gpu->step_count;
    while (i > 0 && gpu->steps[i - 1].at_ns >= at_ns) i--;
    int replaces = i < gpu->step_count && gpu->steps[i].at_ns == at_ns;
    if (at_ns < 0 || power < 0 || (!replaces && gpu->step_count == MAX_STEPS)) return 0;
    if (!replaces) memmove(&gpu->steps[i + 1], &gpu->steps[i], sizeof *gpu->steps * (size_t)(gpu->step_count++ - i));
    gpu->steps[i] = (struct step){at_ns, power};
    return 1;
}

static void reset_gpu(int number) {
    struct gpu *gpu = &gpus[number];
    memset(gpu, 0, sizeof *gpu);
    memcpy(gpu->value, setting_initials, sizeof setting_initials);
    gpu->reset_at_ns = gpu->frozen_at_ns = INT64_MAX;
    strcpy(gpu->name, "Stand-in GPU");
    snprintf(gpu->uuid, TEXT, "GPU-00000000-0000-0000-0000-%012x", number);
    for (int mig = 0; mig <= MAX_MIG; mig++) handles[number][mig] = (struct handle){number, mig - 1};
    for (int mig = 0; mig < MAX_MIG; mig++)
        snprintf(gpu->mig_uuid[mig], TEXT, "MIG-00000000-0000-0000-%04x-%012x", number, mig);
    add_step(gpu, 0, 100000);
}

static int show(const int64_t *wanted, int count) {
    for (int i = 0; i < count; i++) if (wanted && (wanted[i] < 0 || wanted[i] >= MAX_GPUS)) return 0;
    if (count < 0 || count > MAX_GPUS) return 0;
    for (int i = 0; i < count; i++) order[i] = wanted ? (int)wanted[i] : i;
    shown = count;
    return 1;
}

static int reset(void) {
    for (int i = 0; i < MAX_GPUS; i++) reset_gpu(i);
    memset(counters, 0, sizeof counters);
    fault_count = references = strict_fork = real_clock = 0;
    manual_ns = 0;
    return show(NULL, 2);
}

static int add_fault(const char *rest) {
    struct fault fault = {.seen = 0};
    int read = sscanf(rest, "%95s %d %d %ld %ld %ld", fault.function, &fault.gpu, &fault.error,
                      &fault.after, &fault.times, &fault.sleep_us);
    if (read != 6 || fault_count == MAX_FAULTS || fault.sleep_us < 0 || fault.gpu >= MAX_GPUS) return 0;
    faults[fault_count++] = fault;
    return 1;
}

static int machine_command(const char *word, const char *rest, const int64_t *n, int count) {
    if (!strcmp(word, "reset")) return reset();
    if (!strcmp(word, "clock")) return real_clock = !strcmp(rest, "real"), real_clock || !strcmp(rest, "manual");
    if (!strcmp(word, "order")) return show(n, count);
    if (!strcmp(word, "fault")) return add_fault(rest);
    if (!strcmp(word, "clear_faults")) return fault_count = 0, 1;
    if (count != 1 || n[0] < 0) return 0;
    if (!strcmp(word, "gpus")) return show(NULL, (int)n[0]);
    if (!strcmp(word, "strict_fork")) return strict_fork = (int)n[0], 1;
    if (real_clock) return 0;
    if (!strcmp(word, "clock_at")) return manual_ns = n[0], 1;
    if (!strcmp(word, "advance")) return manual_ns += n[0], 1;
    return 0;
}

static int set_text(char *out, const char *rest, int words_to_skip) {
    while (words_to_skip--) rest = strchr(rest, ' ') ? strchr(rest, ' ') + 1 : "";
    return *rest && snprintf(out, TEXT, "%s", rest) < TEXT;
}

static int set_field(struct gpu *gpu, const int64_t *n) {
    int i = 0;
    while (i < gpu->field_count && gpu->fields[i].id != (unsigned)n[1]) i++;
    if (i == MAX_FIELDS) return 0;
    if (i == gpu->field_count) gpu->field_count++;
    gpu->fields[i] = (struct field){(unsigned)n[1], (unsigned)n[2], (int)n[3]};
    return 1;
}

static int gpu_command(const char *word, const char *rest, const int64_t *n, int count) {
    if (count < 1 || n[0] < 0 || n[0] >= MAX_GPUS) return 0;
    struct gpu *gpu = &gpus[n[0]];
    if (!strcmp(word, "name")) return set_text(gpu->name, rest, 1);
    if (!strcmp(word, "uuid")) return set_text(gpu->uuid, rest, 1);
    if (!strcmp(word, "lose")) return gpu->lost = 1;
    if (!strcmp(word, "restore")) return gpu->lost = 0, 1;
    if (count < 2) return 0;
    if (!strcmp(word, "mig_uuid")) return n[1] >= 0 && n[1] < MAX_MIG && set_text(gpu->mig_uuid[n[1]], rest, 2);
    if (!strcmp(word, "mig")) return n[1] >= -1 && n[1] <= MAX_MIG && (gpu->mig_instances = (int)n[1], 1);
    if (!strcmp(word, "reset_energy")) return gpu->reset_at_ns = n[1], 1;
    if (!strcmp(word, "freeze_energy")) return gpu->frozen_at_ns = n[1], 1;
    if (!strcmp(word, "power")) return count == 3 && add_step(gpu, n[1], n[2]);
    if (!strcmp(word, "field")) return count == 4 && set_field(gpu, n);
    for (int i = 0; i < SETTING_COUNT; i++)
        if (!strcmp(word, setting_names[i])) return gpu->value[i] = n[1], count == 2;
    return 0;
}

static int run_command(const char *line) {
    char word[TEXT] = "";
    int64_t n[MAX_GPUS];
    int length = 0, count = 0, used;
    if (sscanf(line, "%95s %n", word, &length) != 1) return 0;
    const char *rest = line + length;
    for (const char *at = rest; count < MAX_GPUS && sscanf(at, "%ld%n", &n[count], &used) == 1; count++) at += used;
    return machine_command(word, rest, n, count) || gpu_command(word, rest, n, count);
}

static void run_script(const char *path) {
    char line[256];
    FILE *script = fopen(path, "r");
    if (!script) { perror("STANDIN_SCRIPT"); abort(); }
    while (fgets(line, sizeof line, script)) {
        line[strcspn(line, "\r\n")] = 0;
        if (!line[0] || line[0] == '#' || run_command(line)) continue;
        fprintf(stderr, "STANDIN_SCRIPT: refused: %s\n", line);
        abort();
    }
    fclose(script);
}

__attribute__((constructor)) static void load(void) {
    pthread_atfork(lock, unlock, unlock);
    loaded_ns = monotonic_ns();
    reset();
    if (getenv("STANDIN_SCRIPT")) run_script(getenv("STANDIN_SCRIPT"));
}

/* ---- what tests may ask ---------------------------------------------------------- */

API int standin_command(const char *line) { LOCKED; return run_command(line); }
API int standin_refcount(void) { LOCKED; return references; }
API int64_t standin_now_ns(void) { LOCKED; return now_ns(); }

API uint64_t standin_calls(const char *function, int gpu) {
    LOCKED;
    for (int i = 0; i < MAX_FUNCTIONS && counters[i].function; i++)
        if (!strcmp(counters[i].function, function)) return gpu < 0 ? counters[i].all : counters[i].of_gpu[gpu];
    return 0;
}

static uint64_t true_energy(int gpu, int64_t from_ns, int64_t to_ns, int64_t unit_pj) {
    LOCKED;
    return (uint64_t)((energy_pj(&gpus[gpu], to_ns) - energy_pj(&gpus[gpu], from_ns)) / unit_pj);
}
API uint64_t standin_true_energy_mj(int gpu, int64_t from_ns, int64_t to_ns) {
    return true_energy(gpu, from_ns, to_ns, 1000000000);
}
API uint64_t standin_true_energy_uj(int gpu, int64_t from_ns, int64_t to_ns) {
    return true_energy(gpu, from_ns, to_ns, 1000000);
}
