/* The tiles of AMX: eight of 16 rows of 64 bytes. */

#ifndef TILES_H
#define TILES_H

#include <immintrin.h>

#include "kernels.h"

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) Tiles;

/* The intrinsics of GCC do not tell the compiler that tiles are read from memory. */
INLINE void memory_is_written(void) { __asm__ volatile("" : : : "memory"); }

/* Set the tiles of this thread, and keep those that another library may have set. */
TARGET("amx-tile") static inline void set_tiles(Tiles *before) {
    Tiles tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) tiles.row_bytes[i] = 64, tiles.rows[i] = 16;
    memory_is_written();
    _tile_storeconfig(before);
    memory_is_written();
    _tile_loadconfig(&tiles);
}

TARGET("amx-tile") static inline void reset_tiles(const Tiles *before) {
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

#endif
