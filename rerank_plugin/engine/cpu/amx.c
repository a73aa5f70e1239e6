/* Whether this process may use the tiles of AMX, for which Linux has to be asked. */

#if defined(__x86_64__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

int may_use_amx(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18 }; /* Documentation/arch/x86/xstate.rst */
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

#else

int may_use_amx(void) { return 0; }

#endif
