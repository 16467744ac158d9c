/* SPDX-License-Identifier: MIT
 *
 * A plugin for qemu-aarch64 (user mode) that counts the guest's instructions between marks, and among them those that
 * multiply and add. A guest marks by getpriority(PRIO_PROCESS, 0x5eed0000), which fails and changes nothing; each mark
 * writes one JSON line with the counts since the mark before.
 *
 *     cc -O2 -shared -fPIC icount.c -o libicount.so
 *     qemu-aarch64 -plugin ./libicount.so,out=counts.jsonl ...
 *
 * The plugin interface is declared here, as distributions ship qemu without its header; it is version 1, which qemu
 * has kept since 4.2. Counters are plain adds: right for one guest thread, which is how the runner starts.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info;
typedef uint64_t plugin_id;
enum { INLINE_ADD = 0, GETPRIORITY = 141 };
#define MARK UINT64_C(0x5eed0000)

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t,
                                                                     uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

/* Instructions by the bits that tell them (Arm ARM, C4.1, data processing: SIMD and floating point), with the
 * multiply-adds each performs. Rows with one name are the vector and the by-element form of one operation. */
static struct { const char *name; uint32_t mask, bits; unsigned macs; uint64_t count, before; } kinds[] = {
  {"fmla.4s",  0xFFE0FC00, 0x4E20CC00, 4, 0, 0},  {"fmla.4s",  0xFFC0F400, 0x4F801000, 4, 0, 0},
  {"fmla.2s",  0xFFE0FC00, 0x0E20CC00, 2, 0, 0},  {"fmla.2s",  0xFFC0F400, 0x0F801000, 2, 0, 0},
  {"fmla.2d",  0xFFE0FC00, 0x4E60CC00, 2, 0, 0},  {"fmla.2d",  0xFFC0F400, 0x4FC01000, 2, 0, 0},
  {"fmla.8h",  0xFFE0FC00, 0x4E400C00, 8, 0, 0},  {"fmla.8h",  0xFFC0F400, 0x4F001000, 8, 0, 0},
  {"fmla.4h",  0xFFE0FC00, 0x0E400C00, 4, 0, 0},  {"fmla.4h",  0xFFC0F400, 0x0F001000, 4, 0, 0},
  {"dot.16b",  0xDFE0FC00, 0x4E809400, 16, 0, 0}, {"dot.16b",  0xDFC0F400, 0x4F80E000, 16, 0, 0},
  {"dot.8b",   0xDFE0FC00, 0x0E809400, 8, 0, 0},  {"dot.8b",   0xDFC0F400, 0x0F80E000, 8, 0, 0},
  {"mmla.16b", 0xDFE0FC00, 0x4E80A400, 32, 0, 0}, {"mmla.16b", 0xFFE0FC00, 0x4E80AC00, 32, 0, 0},
  {"bfmmla",   0xFFE0FC00, 0x6E40EC00, 16, 0, 0},
  {"mlal.8h",  0x9FE0FC00, 0x0E208000, 8, 0, 0},  {"mull.8h",  0x9FE0FC00, 0x0E20C000, 8, 0, 0},
  {"mlal.4s",  0x9FE0FC00, 0x0E608000, 4, 0, 0},  {"mlal.4s",  0x9FC0F400, 0x0F402000, 4, 0, 0},
  {"fmadd",    0xFF208000, 0x1F000000, 1, 0, 0},
  {"sve",      0x1E000000, 0x04000000, 0, 0, 0},  {"sme",      0x9E000000, 0x80000000, 0, 0, 0},
};
enum { KINDS = sizeof kinds / sizeof *kinds };
static uint64_t total, total_before;
static FILE *out;

static void count_block(plugin_id id, struct qemu_plugin_tb *block) {
  size_t length = qemu_plugin_tb_n_insns(block);
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD, &total, length);
  for (size_t i = 0; i < length; i++) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
    for (int k = 0; k < KINDS; k++) {
      if ((word & kinds[k].mask) != kinds[k].bits) continue;
      qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD, &kinds[k].count, 1);
      break;
    }
  }
}

static void write_line(void) {
  uint64_t macs = 0, sum = 0;
  fprintf(out, "{\"instructions\": %" PRIu64, total - total_before);
  total_before = total;
  for (int k = 0; k < KINDS; k++) {
    uint64_t count = kinds[k].count - kinds[k].before;
    kinds[k].before = kinds[k].count;
    macs += count * kinds[k].macs;
    sum += count;
    if (k + 1 < KINDS && !strcmp(kinds[k].name, kinds[k + 1].name)) continue;   /* the next row is of the same name */
    if (sum) fprintf(out, ", \"%s\": %" PRIu64, kinds[k].name, sum);
    sum = 0;
  }
  fprintf(out, ", \"macs\": %" PRIu64 "}\n", macs);
  fflush(out);
}

static void see_call(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t who, uint64_t c, uint64_t d,
                     uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number == GETPRIORITY && (who & 0xffffffff) == MARK) write_line();
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int count, char **arguments) {
  (void)info;
  for (int i = 0; i < count; i++)
    if (!strncmp(arguments[i], "out=", 4)) out = fopen(arguments[i] + 4, "w");
  if (!out) return fprintf(stderr, "icount: out=FILE is missing or cannot be written\n"), 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
  qemu_plugin_register_vcpu_syscall_cb(id, see_call);
  return 0;
}
