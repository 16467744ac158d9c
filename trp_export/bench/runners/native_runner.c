/* The runner for devices without Python: one model in onnxruntime, driven by lines on stdin, answering in JSON lines.
 *
 *     cc -std=gnu11 -O2 native_runner.c -o trp-runner -ldl -lpthread          (see tools/build_native_runner.sh for Android)
 *     trp-runner probe LIBRARY
 *     trp-runner serve LIBRARY MODEL INPUTS SCRATCH THREADS [CORES]      CORES as 4,5
 *
 * python_runner.py describes the protocol. INPUTS is its manifest: one line per input, `ELEMENT FILE DIM DIM ...`.
 * The library is opened at run time and reached through the function table of its C API. That table only ever grows
 * at its end, so the places below, taken from onnxruntime_c_api.h, hold for every version from 1.14.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum { PROTOCOL = 1, API_VERSION = 14, MOST_DIMS = 16, LINE = 4096 };
enum {
  GET_ERROR_MESSAGE = 2, CREATE_ENV = 3, CREATE_SESSION = 7, RUN = 9, CREATE_SESSION_OPTIONS = 10,
  SET_OPTIMIZATION = 23, SET_INTRA_THREADS = 24, SET_INTER_THREADS = 25, INPUT_COUNT = 30, OUTPUT_COUNT = 31,
  INPUT_NAME = 36, OUTPUT_NAME = 37, CREATE_TENSOR = 49, IS_TENSOR = 50, TENSOR_DATA = 51, ELEMENT_TYPE = 60,
  DIM_COUNT = 61, DIMS = 62, ELEMENT_COUNT = 64, TENSOR_INFO = 65, CREATE_CPU_MEMORY = 69, DEFAULT_ALLOCATOR = 78,
  RELEASE_VALUE = 96, RELEASE_TENSOR_INFO = 99
};
typedef void *(*Function)();                       /* all but the releases return a status, null where all is well */
struct ApiBase { const Function *(*get_api)(uint32_t); const char *(*version)(void); };

static const struct ApiBase *base;
static const Function *api;
static void *session;
static size_t inputs, outputs;
static char **input_names, **output_names;
static void **input_values, **output_values;
static const char *scratch;
static char reply[1 << 20];                        /* the most that a controller reads; printed once it is whole */

/* One JSON line that ends the program, in place of a reply that was begun. Quotes and control characters of the
 * message become blanks. */
static void fail(const char *format, ...) {
  char text[LINE];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  for (char *c = text; *c; c++)
    if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') *c = ' ';
  __fpurge(stdout);
  printf("{\"error\": \"%s\"}\n", text);
  fflush(stdout);
  _exit(1);
}

static void check(void *status, const char *what) {
  if (status) fail("%s: %s", what, (const char *)((const char *(*)(void *))api[GET_ERROR_MESSAGE])(status));
}

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Peak resident memory. Not ru_maxrss, which a child inherits from its parent. */
static long peak_bytes(void) {
  long kilobytes = 0;
  char line[256];
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %ld", &kilobytes) == 1) break;
  if (file) fclose(file);
  return kilobytes * 1024;
}

static void open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail("cannot open onnxruntime: %s", dlerror());
  const struct ApiBase *(*get_base)(void) = (const struct ApiBase *(*)(void))dlsym(library, "OrtGetApiBase");
  if (!get_base) fail("%s is not an onnxruntime library", path);
  base = get_base();
  api = base->get_api(API_VERSION);
  if (!api) fail("onnxruntime %s is too old, 1.14 is needed", base->version());
}

/* The first word of a small file of the system, or an empty string. */
static const char *word_of(const char *format, int core) {
  static char word[128];
  char path[256];
  snprintf(path, sizeof path, format, core);
  FILE *file = fopen(path, "r");
  if (!file || fscanf(file, "%127[0-9a-zA-Z_,-]", word) != 1) word[0] = 0;
  if (file) fclose(file);
  return word;
}

static void probe(void) {
  struct utsname system;
  struct sysinfo info;
  cpu_set_t allowed;
  uname(&system);
  sysinfo(&info);
  sched_getaffinity(0, sizeof allowed, &allowed);
  printf("{\"protocol\": %d, \"cpu\": \"%s\", \"machine\": \"%s\", \"system\": \"%s %s\", \"logical_cores\": %ld, ",
         PROTOCOL, system.machine, system.machine, system.sysname, system.release, sysconf(_SC_NPROCESSORS_CONF));
  printf("\"load\": %.2f, \"can_pin\": true, \"onnxruntime\": \"%s\", \"providers\": [\"CPUExecutionProvider\"], ",
         info.loads[0] / 65536.0, base->version());
  printf("\"cores\": [");
  const char *comma = "";
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (!CPU_ISSET(core, &allowed)) continue;
    const char *folder = "/sys/devices/system/cpu/cpu%d";
    char path[128];
    printf("%s{\"core\": %d", comma, core);
    static const struct { const char *name, *file; int is_number; } facts[] = {
      {"siblings", "/topology/thread_siblings_list", 0}, {"capacity", "/cpu_capacity", 1},
      {"governor", "/cpufreq/scaling_governor", 0}, {"max_khz", "/cpufreq/cpuinfo_max_freq", 1}};
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
      snprintf(path, sizeof path, "%s%s", folder, facts[i].file);
      const char *word = word_of(path, core);
      if (facts[i].is_number) printf(", \"%s\": %ld", facts[i].name, atol(word));
      else if (*word || i) printf(", \"%s\": \"%s\"", facts[i].name, word);
      else printf(", \"%s\": \"%d\"", facts[i].name, core);
    }
    printf("}");
    comma = ", ";
  }
  printf("]}\n");
}

static void pin(const char *cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const char *at = cores; *at; at += strcspn(at, ","), at += *at == ',') CPU_SET(atoi(at), &set);
  if (sched_setaffinity(0, sizeof set, &set)) fail("cannot pin to cores %s", cores);
}

static double load_model(const char *model, int threads) {
  void *environment, *options;
  check(api[CREATE_ENV](3, "trp-runner", &environment), "environment");
  check(api[CREATE_SESSION_OPTIONS](&options), "options");
  check(api[SET_INTRA_THREADS](options, threads), "threads");
  check(api[SET_INTER_THREADS](options, 1), "threads");
  check(api[SET_OPTIMIZATION](options, 99), "optimization");
  int64_t start = now_ns();
  check(api[CREATE_SESSION](environment, model, options, &session), "cannot load the model");
  return (now_ns() - start) / 1e6;
}

static char **names_of(int count_slot, int name_slot, size_t *count) {
  void *allocator;
  check(api[DEFAULT_ALLOCATOR](&allocator), "allocator");
  check(api[count_slot](session, count), "count");
  char **names = calloc(*count + 1, sizeof *names);
  for (size_t i = 0; i < *count; i++) check(api[name_slot](session, i, allocator, &names[i]), "name");
  return names;
}

static void *read_input(char *line, const char *folder, void *memory) {
  char *file_name, *rest, path[LINE];
  int64_t dims[MOST_DIMS];
  size_t rank = 0;
  int element = (int)strtol(line, &rest, 10);
  file_name = strtok(rest, " ");
  for (char *dim; (dim = strtok(NULL, " "));) {
    if (rank == MOST_DIMS) fail("an input has more than %d dimensions", MOST_DIMS);
    dims[rank++] = strtoll(dim, NULL, 10);
  }
  snprintf(path, sizeof path, "%s/%s", folder, file_name);
  FILE *file = fopen(path, "rb");
  if (!file) fail("cannot open %s", path);
  fseek(file, 0, SEEK_END);
  size_t size = (size_t)ftell(file);
  rewind(file);
  void *data = malloc(size + 1), *value;
  if (!data || fread(data, 1, size, file) != size) fail("cannot read %s", path);
  fclose(file);
  check(api[CREATE_TENSOR](memory, data, size, dims, rank, element, &value), "input");
  return value;
}

static void load_inputs(char *manifest) {
  char line[LINE], folder[LINE];
  void *memory;
  check(api[CREATE_CPU_MEMORY](0, 0, &memory), "memory");
  snprintf(folder, sizeof folder, "%s", manifest);
  char *slash = strrchr(folder, '/');
  if (slash) *slash = 0; else strcpy(folder, ".");
  FILE *file = fopen(manifest, "r");
  if (!file) fail("cannot open %s", manifest);
  input_values = calloc(inputs + 1, sizeof *input_values);
  for (size_t i = 0; i < inputs; i++) {
    if (!fgets(line, sizeof line, file)) fail("the model has %zu inputs, the manifest fewer", inputs);
    line[strcspn(line, "\n")] = 0;
    input_values[i] = read_input(line, folder, memory);
  }
  fclose(file);
}

static void infer(void) {
  check(api[RUN](session, (void *)0, input_names, input_values, inputs, output_names, outputs, output_values), "run");
}

static void release_outputs(void) {
  for (size_t i = 0; i < outputs; i++) {
    ((void (*)(void *))api[RELEASE_VALUE])(output_values[i]);
    output_values[i] = NULL;
  }
}

static void reply_samples(long samples, long inner) {
  printf("{\"samples\": [");
  for (long i = 0; i < samples; i++) {
    int64_t start = now_ns();
    for (long k = 0; k < inner; k++) {
      infer();
      release_outputs();
    }
    printf("%s%lld", i ? ", " : "", (long long)((now_ns() - start) / inner));
  }
  printf("], \"peak_bytes\": %ld}\n", peak_bytes());
}

static size_t element_bytes(int element) {
  static const size_t bytes[] = {0, 4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8};   /* by ONNX's element type, 0: not a number */
  return element > 0 && element < (int)(sizeof bytes / sizeof *bytes) ? bytes[element] : 0;
}

static void reply_output(size_t index) {
  int is_tensor, element;
  void *info, *data;
  size_t rank, count;
  int64_t dims[MOST_DIMS];
  check(api[IS_TENSOR](output_values[index], &is_tensor), "output");
  if (!is_tensor) { printf("{\"skipped\": \"not a tensor\"}"); return; }
  check(api[TENSOR_INFO](output_values[index], &info), "output");
  check(api[ELEMENT_TYPE](info, &element), "output");
  check(api[DIM_COUNT](info, &rank), "output");
  check(api[ELEMENT_COUNT](info, &count), "output");
  if (rank > MOST_DIMS || !element_bytes(element)) { printf("{\"skipped\": \"element type %d\"}", element); return; }
  check(api[DIMS](info, dims, rank), "output");
  ((void (*)(void *))api[RELEASE_TENSOR_INFO])(info);
  check(api[TENSOR_DATA](output_values[index], &data), "output");
  char path[LINE];
  snprintf(path, sizeof path, "%s/output%zu.bin", scratch, index);
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(data, element_bytes(element), count, file) != count || fclose(file)) fail("cannot write %s", path);
  printf("{\"file\": \"output%zu.bin\", \"element\": %d, \"shape\": [", index, element);
  for (size_t d = 0; d < rank; d++) printf("%s%lld", d ? ", " : "", (long long)dims[d]);
  printf("]}");
}

static void reply_outputs(void) {
  infer();
  printf("{\"outputs\": [");
  for (size_t i = 0; i < outputs; i++) {
    if (i) printf(", ");
    reply_output(i);
  }
  release_outputs();
  printf("], \"peak_bytes\": %ld}\n", peak_bytes());
}

/* A controller that is gone cannot want an answer: leave, even in the middle of an inference. */
static void *leave_at_hang_up(void *unused) {
  struct pollfd in = {.fd = 0, .events = POLLRDHUP};
  while (poll(&in, 1, -1) < 0 || !(in.revents & (POLLHUP | POLLRDHUP | POLLERR))) usleep(100000);
  _exit(0);
  return unused;
}

static int serve(char **arguments, const char *cores) {
  pthread_t watcher;
  char line[LINE];
  long samples, inner;
  pthread_create(&watcher, NULL, leave_at_hang_up, NULL);
  if (cores) pin(cores);
  int threads = atoi(arguments[3]);
  scratch = arguments[2];
  long base_bytes = peak_bytes();
  double load_ms = load_model(arguments[0], threads);
  input_names = names_of(INPUT_COUNT, INPUT_NAME, &inputs);
  output_names = names_of(OUTPUT_COUNT, OUTPUT_NAME, &outputs);
  output_values = calloc(outputs + 1, sizeof *output_values);
  load_inputs(arguments[1]);
  printf("{\"protocol\": %d, \"load_ms\": %.3f, \"base_bytes\": %ld, \"onnxruntime\": \"%s\", ", PROTOCOL, load_ms,
         base_bytes, base->version());
  printf("\"provider\": \"CPUExecutionProvider\", \"affinity\": [");
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  for (int core = 0, seen = 0; core < CPU_SETSIZE; core++)
    if (CPU_ISSET(core, &allowed)) printf("%s%d", seen++ ? ", " : "", core);
  printf("]}\n");
  while (fflush(stdout), fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "run %ld %ld", &samples, &inner) == 2 && samples > 0 && inner > 0) reply_samples(samples, inner);
    else if (!strcmp(line, "outputs\n")) reply_outputs();
    else if (!strcmp(line, "quit\n")) return 0;
    else fail("unknown command");
  }
  return 0;
}

int main(int count, char **arguments) {
  int serving = count >= 7 && !strcmp(arguments[1], "serve");
  if (!serving && !(count == 3 && !strcmp(arguments[1], "probe")))
    return fprintf(stderr, "usage: trp-runner probe LIBRARY | serve LIBRARY MODEL INPUTS SCRATCH THREADS [CORES]\n"), 2;
  setvbuf(stdout, reply, _IOFBF, sizeof reply);
  setenv("ORT_DISABLE_TELEMETRY", "1", 1); /* before the library is loaded */
  open_library(arguments[2]);
  if (!serving) return probe(), 0;
  fflush(stdout);
  _exit(serve(arguments + 3, count > 7 ? arguments[7] : NULL));
}
