/* A plugin of qemu-user: how many instructions has the emulated program executed?
 *
 * Each block of instructions adds its length to a counter as it is executed. The program reads the counter by a system
 * call that does nothing, close(MARK), since no file has that descriptor: the plugin then appends a line to a file,
 *
 *     INSTRUCTIONS THREADS
 *
 * both counted from the start of the program. With more than one thread additions may be lost.
 *
 *     qemu-ARCH -plugin count.so,counts=FILE PROGRAM
 *
 * The declarations are those of qemu-plugin.h (version 1, qemu 4.2 to 8.2), which the packages of qemu-user do not bring.
 */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK 0x51494C /* as in guest.py */

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

typedef void (*on_vcpu_t)(qemu_plugin_id_t id, unsigned int vcpu);
typedef void (*on_translation_t)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*on_syscall_t)(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2,
                             uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t id, on_vcpu_t callback);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, on_translation_t callback);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, on_syscall_t callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, enum qemu_plugin_op op, void *counter,
                                              uint64_t added);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);

EXPORT int qemu_plugin_version = 1;

static FILE *counts;
static uint64_t instructions;
static unsigned int threads;

static void on_vcpu(qemu_plugin_id_t id, unsigned int vcpu)
{
    (void)id, (void)vcpu;
    threads++;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &instructions,
                                             qemu_plugin_tb_n_insns(block));
}

static void on_syscall(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)number, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (a1 == MARK) {
        fprintf(counts, "%" PRIu64 " %u\n", instructions, threads);
        fflush(counts);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    static const char key[] = "counts=";

    (void)info;
    if (argc != 1 || strncmp(argv[0], key, strlen(key)) != 0) {
        fprintf(stderr, "count.so takes one argument, counts=FILE\n");
        return 1;
    }
    counts = fopen(argv[0] + strlen(key), "w");
    if (counts == NULL) {
        perror(argv[0] + strlen(key));
        return 1;
    }
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
