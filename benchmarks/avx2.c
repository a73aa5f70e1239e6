/* LD_PRELOAD library: this process and its children see an x86 CPU without AMX and, unless KEEP_AVX512
   is set, without AVX-512 and, unless KEEP_AVX_VNNI is set, AVX-VNNI. Linux lets CPUID fault where the CPU can (flag cpuid_fault); the
   handler answers with those bits cleared. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012 };

static int keep_avx_vnni, keep_avx512;
static struct sigaction previous;

static long set_cpuid(unsigned long on) {
    /* A raw call: nothing here may touch errno. */
    long result;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(SYS_arch_prctl), "D"(ARCH_SET_CPUID), "S"(on) : "rcx", "r11", "memory");
    return result;
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
        sigaction(SIGSEGV, &previous, NULL);
        return;
    }
    unsigned leaf = registers[REG_RAX], sub = registers[REG_RCX], a, b, c, d;
    set_cpuid(1);
    __cpuid_count(leaf, sub, a, b, c, d);
    set_cpuid(0);
    if (leaf == 7 && sub == 0) {
        /* AMX_BF16, AMX_TILE, AMX_INT8. */
        d &= ~(1u << 22 | 1u << 24 | 1u << 25);
        if (!keep_avx512) {
            /* F DQ IFMA PF ER CD BW VL; VBMI VBMI2 VNNI BITALG VPOPCNTDQ; VP2INTERSECT FP16. */
            b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 |
                   1u << 31);
            c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
            d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 23);
        }
    }
    if (leaf == 7 && sub == 1) {
        /* AMX-FP16; AVX512_BF16; AVX-VNNI; AMX-COMPLEX, AVX10 and later ones. */
        a &= ~(1u << 21);
        d &= ~(1u << 8);
        if (!keep_avx512) {
            a &= ~(1u << 5 | 1u << 23 | (keep_avx_vnni ? 0 : 1u << 4));
            d &= ~(1u << 4 | 1u << 5 | 1u << 10 | 1u << 19);
        }
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    keep_avx512 = getenv("KEEP_AVX512") != NULL;
    keep_avx_vnni = getenv("KEEP_AVX_VNNI") != NULL;
    sigaction(SIGSEGV, &action, &previous);
    if (set_cpuid(0)) {
        fputs("avx2.so: this CPU or kernel has no CPUID faulting\n", stderr);
        _exit(1);
    }
}
