/*
 * A stand-in for NVIDIA's libnvidia-ml.so.1: no GPU, but the answers of one.
 *
 * The functions here are what `pynvml` finds; what they report lives in
 * standin_machine.h, together with the commands by which a test changes it.
 *
 * What a real driver answers for MIG instances beyond name, UUID, memory and
 * identity was not measured; here it is NotSupported.
 */
#include "standin_machine.h"

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15, VERSION_MISMATCH = 25, UNKNOWN = 999 };
enum { LIFE_CYCLE, SYSTEM, GPU, GPU_OR_MIG, BY_NAME };

/* ---- what every call goes through -------------------------------------- */

static int known(const struct handle *handle) {
    return handle >= &handles[0][0] && handle <= &handles[MAX_GPUS - 1][MAX_MIG];
}

static int refuse(const char *function, const struct handle *handle, int accepts) {
    int valid = handle && known(handle);
    count_call(function, valid ? handle : NULL);
    if (strict_fork && references && getpid() != owner) return UNKNOWN;
    if (accepts != LIFE_CYCLE && !references) return UNINITIALIZED;
    int error = run_faults(function, valid ? handle : NULL);
    if (error || accepts == LIFE_CYCLE || accepts == SYSTEM) return error;
    if (!valid) return accepts == BY_NAME ? NOT_FOUND : INVALID_ARGUMENT;
    if (gpus[handle->gpu].lost) return GPU_IS_LOST;
    if (handle->mig >= 0 && handle->mig >= gpus[handle->gpu].mig_instances) return INVALID_ARGUMENT;
    return accepts == GPU && handle->mig >= 0 ? NOT_SUPPORTED : OK;
}

#define ENTER(handle, accepts) \
    LOCKED; \
    int refused = refuse(__func__, (handle), (accepts)); \
    if (refused) return refused
#define ENTER_GPU(accepts) ENTER(handle, accepts); const struct gpu *gpu = &gpus[handle->gpu]; (void)gpu

static int copy_text(char *out, unsigned size, const char *text) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return OK;
}

/* ---- life cycle and identity -------------------------------------------- */

static int take_reference(void) {
    if (!references++) owner = getpid();
    return OK;
}

API int nvmlInit_v2(void) { ENTER(NULL, LIFE_CYCLE); return take_reference(); }
API int nvmlInitWithFlags(unsigned flags) { (void)flags; ENTER(NULL, LIFE_CYCLE); return take_reference(); }
API int nvmlShutdown(void) { ENTER(NULL, SYSTEM); references--; return OK; }

API const char *nvmlErrorString(int error) {
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power",
        "Driver Not Loaded", "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found",
        "Function Not Found", "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "GPU access blocked by the operating system", "Driver/library version mismatch"};
    return error >= 0 && error < (int)(sizeof texts / sizeof *texts) ? texts[error] : "Unknown Error";
}

API int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    ENTER(NULL, SYSTEM);
    return copy_text(out, size, "999.00.standin");
}
API int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    ENTER(NULL, SYSTEM);
    return copy_text(out, size, "13.999.00.standin");
}
API int nvmlDeviceGetCount_v2(unsigned *out) { ENTER(NULL, SYSTEM); *out = (unsigned)shown; return OK; }

static struct handle *by_index(unsigned index) {
    return index < (unsigned)shown ? &handles[order[index]][0] : NULL;
}

static struct handle *by_uuid(const char *uuid) {
    for (int i = 0; i < shown; i++) {
        struct gpu *gpu = &gpus[order[i]];
        if (!strcmp(gpu->uuid, uuid)) return &handles[order[i]][0];
        for (int mig = 0; mig < gpu->mig_instances; mig++)
            if (!strcmp(gpu->mig_uuid[mig], uuid)) return &handles[order[i]][1 + mig];
    }
    return NULL;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct handle **out) {
    ENTER(by_index(index), GPU);
    *out = by_index(index);
    return OK;
}
API int nvmlDeviceGetHandleByUUID(const char *uuid, struct handle **out) {
    ENTER(by_uuid(uuid), BY_NAME);
    *out = by_uuid(uuid);
    return OK;
}
API int nvmlDeviceGetIndex(struct handle *handle, unsigned *out) {
    ENTER(handle, GPU_OR_MIG);
    for (unsigned i = 0; i < (unsigned)shown; i++) if (order[i] == handle->gpu) *out = i;
    if (handle->mig >= 0) *out = (unsigned)handle->mig;
    return OK;
}
API int nvmlDeviceGetName(struct handle *handle, char *out, unsigned size) {
    ENTER_GPU(GPU_OR_MIG);
    char name[TEXT + 8];
    snprintf(name, sizeof name, "%s%s", gpu->name, handle->mig < 0 ? "" : " MIG 1g");
    return copy_text(out, size, name);
}
API int nvmlDeviceGetUUID(struct handle *handle, char *out, unsigned size) {
    ENTER_GPU(GPU_OR_MIG);
    return copy_text(out, size, handle->mig < 0 ? gpu->uuid : gpu->mig_uuid[handle->mig]);
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
API int nvmlDeviceGetPciInfo_v3(struct handle *handle, struct pci *out) {
    ENTER(handle, GPU);
    *out = (struct pci){.bus = (unsigned)handle->gpu + 1, .id = 0x223010de};
    snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", out->bus & 0xff);
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", out->bus & 0xff);
    return OK;
}

/* ---- MIG ------------------------------------------------------------------ */

API int nvmlDeviceGetMigMode(struct handle *handle, unsigned *current, unsigned *pending) {
    ENTER_GPU(GPU);
    *current = *pending = gpu->mig_instances > 0;
    return gpu->mig_instances < 0 ? NOT_SUPPORTED : OK;
}
API int nvmlDeviceGetMaxMigDeviceCount(struct handle *handle, unsigned *out) {
    ENTER_GPU(GPU);
    *out = gpu->mig_instances < 0 ? 0 : MAX_MIG;
    return OK;
}
API int nvmlDeviceGetMigDeviceHandleByIndex(struct handle *handle, unsigned index, struct handle **out) {
    ENTER_GPU(GPU);
    if (gpu->mig_instances <= 0) return NOT_SUPPORTED;
    if (index >= (unsigned)gpu->mig_instances) return NOT_FOUND;
    *out = &handles[handle->gpu][1 + index];
    return OK;
}
API int nvmlDeviceIsMigDeviceHandle(struct handle *handle, unsigned *out) {
    ENTER(handle, GPU_OR_MIG);
    *out = handle->mig >= 0;
    return OK;
}
API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct handle *handle, struct handle **out) {
    ENTER(handle, GPU_OR_MIG);
    *out = &handles[handle->gpu][0];
    return handle->mig < 0 ? INVALID_ARGUMENT : OK;
}
static int instance_id(const struct handle *handle, unsigned id, unsigned *out) {
    *out = id;
    return handle->mig < 0 ? NOT_SUPPORTED : OK;
}
API int nvmlDeviceGetGpuInstanceId(struct handle *handle, unsigned *out) {
    ENTER(handle, GPU_OR_MIG);
    return instance_id(handle, (unsigned)handle->mig + 1, out);
}
API int nvmlDeviceGetComputeInstanceId(struct handle *handle, unsigned *out) {
    ENTER(handle, GPU_OR_MIG);
    return instance_id(handle, 0, out);
}

/* ---- readings --------------------------------------------------------------- */

#define READING(function, type, expression) \
    API int function(struct handle *handle, type *out) { ENTER_GPU(GPU); *out = (type)(expression); return OK; }
READING(nvmlDeviceGetArchitecture, unsigned, gpu->value[architecture])
READING(nvmlDeviceGetPowerUsage, unsigned, mean_power_mw(gpu))
READING(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->value[limit])
READING(nvmlDeviceGetEnforcedPowerLimit, unsigned, gpu->value[enforced_limit])
READING(nvmlDeviceGetTotalEnergyConsumption, uint64_t, energy_counter_mj(gpu))
READING(nvmlDeviceGetFanSpeed, unsigned, gpu->value[fan])
READING(nvmlDeviceGetCurrentClocksThrottleReasons, uint64_t, gpu->value[throttle])
READING(nvmlDeviceGetCurrentClocksEventReasons, uint64_t, gpu->value[throttle])
READING(nvmlDeviceGetPerformanceState, unsigned, gpu->value[performance_state])

struct utilization { unsigned gpu, memory; };
API int nvmlDeviceGetUtilizationRates(struct handle *handle, struct utilization *out) {
    ENTER_GPU(GPU);
    if (gpu->mig_instances > 0) return NOT_SUPPORTED;
    *out = (struct utilization){(unsigned)gpu->value[utilization], (unsigned)gpu->value[memory_utilization]};
    return OK;
}

/* Each of a GPU's instances shows an equal share of its memory. */
static uint64_t share(const struct handle *handle, enum setting setting) {
    const struct gpu *gpu = &gpus[handle->gpu];
    return (uint64_t)gpu->value[setting] / (uint64_t)(handle->mig < 0 ? 1 : gpu->mig_instances);
}

struct memory { uint64_t total, free, used; };
API int nvmlDeviceGetMemoryInfo(struct handle *handle, struct memory *out) {
    ENTER(handle, GPU_OR_MIG);
    out->total = share(handle, memory_total);
    out->used = share(handle, memory_used) + share(handle, memory_reserved);
    out->free = out->total - out->used;
    return OK;
}

struct memory_v2 { unsigned version; uint64_t total, reserved, free, used; };
API int nvmlDeviceGetMemoryInfo_v2(struct handle *handle, struct memory_v2 *out) {
    ENTER(handle, GPU_OR_MIG);
    if (out->version != (2u << 24 | sizeof *out)) return VERSION_MISMATCH;
    out->total = share(handle, memory_total);
    out->reserved = share(handle, memory_reserved);
    out->used = share(handle, memory_used);
    out->free = out->total - out->reserved - out->used;
    return OK;
}

API int nvmlDeviceGetTemperature(struct handle *handle, unsigned sensor, unsigned *out) {
    ENTER_GPU(GPU);
    *out = (unsigned)gpu->value[temperature];
    return sensor ? INVALID_ARGUMENT : OK;
}
#ifndef OLD_DRIVER
struct temperature { unsigned version, sensor; int celsius; };
API int nvmlDeviceGetTemperatureV(struct handle *handle, struct temperature *out) {
    ENTER_GPU(GPU);
    if (out->version != (1u << 24 | sizeof *out)) return VERSION_MISMATCH;
    out->celsius = (int)gpu->value[temperature];
    return out->sensor ? INVALID_ARGUMENT : OK;
}
#endif

API int nvmlDeviceGetClockInfo(struct handle *handle, unsigned domain, unsigned *out) {
    ENTER_GPU(GPU);
    if (domain > 3) return INVALID_ARGUMENT;
    *out = (unsigned)gpu->value[clock_graphics + domain];
    return OK;
}
API int nvmlDeviceGetTotalEccErrors(struct handle *handle, unsigned uncorrected, unsigned aggregate, uint64_t *out) {
    ENTER_GPU(GPU);
    if (uncorrected > 1 || aggregate > 1) return INVALID_ARGUMENT;
    *out = (uint64_t)gpu->value[ecc_corrected_volatile + 2 * uncorrected + aggregate];
    return OK;
}

union value { double real; unsigned uint; unsigned long ulong; uint64_t ull; int64_t sll; int sint; unsigned short ushort; };
struct sample { uint64_t timestamp_us; union value value; };
struct field_value { unsigned id, scope; int64_t timestamp_us, latency_us; unsigned type, error; union value value; };

static void write_value(union value *out, int type, uint64_t value) {
    switch (type) {
    case 0: out->real = (double)value; break;
    case 1: out->uint = (unsigned)value; break;
    case 6: out->ushort = (unsigned short)value; break;
    default: out->ull = value; break;
    }
}

static void read_field(const struct gpu *gpu, struct field_value *out) {
    int type = out->id == 83 ? 3 : 1;
    uint64_t value = out->id == 82 ? (uint64_t)gpu->value[memory_temperature]
                   : out->id == 83 ? energy_counter_mj(gpu)
                   : out->id == 185 ? (uint64_t)mean_power_mw(gpu) : (uint64_t)instant_power_mw(gpu);
    int exists = out->scope == 0 && (out->id == 82 || out->id == 83 || out->id == 185 || out->id == 186);
    out->timestamp_us = now_ns() / 1000;
    out->latency_us = 0;
    out->error = exists ? OK : NOT_SUPPORTED;
    for (int i = 0; i < gpu->field_count; i++) {
        if (gpu->fields[i].id != out->id) continue;
        if (gpu->fields[i].error) out->error = gpu->fields[i].error;
        if (gpu->fields[i].type >= 0) type = gpu->fields[i].type;
    }
    out->type = (unsigned)type;
    if (out->error == OK) write_value(&out->value, type, value);
}

API int nvmlDeviceGetFieldValues(struct handle *handle, int count, struct field_value *values) {
    ENTER_GPU(GPU);
    for (int i = 0; i < count; i++) read_field(gpu, &values[i]);
    return OK;
}

/* The last 120 power readings of 20 ms each that are younger than seen_us. */
API int nvmlDeviceGetSamples(struct handle *handle, unsigned kind, uint64_t seen_us, unsigned *type,
                             unsigned *count, struct sample *out) {
    ENTER_GPU(GPU);
    if (kind) return NOT_SUPPORTED;
    *type = 1;
    if (!out) return *count = MAX_SAMPLES, OK;
    int64_t newest = now_ns() / SAMPLE_NS, oldest = newest - MAX_SAMPLES + 1;
    unsigned room = *count;
    *count = 0;
    for (int64_t i = oldest < 0 ? 0 : oldest; i <= newest && *count < room; i++) {
        if ((uint64_t)(i * SAMPLE_NS / 1000) <= seen_us && seen_us) continue;
        out[*count].timestamp_us = (uint64_t)(i * SAMPLE_NS / 1000);
        write_value(&out[(*count)++].value, 1, (uint64_t)power_mw(gpu, i * SAMPLE_NS));
    }
    return OK;
}
