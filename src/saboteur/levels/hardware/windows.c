/* Windows of a stream of tiles: machines that are in the same phase of different tiles, side by side.
 *
 * An array gets tile after tile, one every `interval` cycles: a *period*. Which word of which tile is on which input in
 * which phase of a period is the same in all periods; only the controls of the first and last periods differ (patches).
 * Continues runtime.c.
 */
typedef struct { int32_t slot, shift, low, whole; u64 ones; } Wire; /* slot |= (word >> low & ones) << shift */
typedef struct { int32_t input, unused; u64 value; } Patch;
typedef struct { int32_t low, to, back, row, column, unused; u64 ones; } Piece; /* += (slot >> low & ones) << to */
typedef struct { int32_t cycle, lane; int64_t to; } Snapshot;

typedef struct {
    int32_t interval, inputs, fields, backs, words, bytes, width, tiles, head, references, row;
    int32_t columns, rows_of_c, a_groups;  /* words of A take so many groups of 8, those of B the rest */
    const int32_t *input_slot;
    const u64 *constant;               /* [interval][inputs], of a period in the middle */
    const int32_t *back, *word;        /* [interval][fields]: shows this word of the tile so many periods back; -1: none */
    const int32_t *first_use, *last_use; /* [backs][words / 8]: in which phases words are on inputs */
    const int32_t *wire_first;         /* [fields + 1] */
    const Wire *wire;
    const int32_t *patch_first;        /* [references][interval + 1] */
    const Patch *patch;
    const int32_t *keep_first;         /* [interval + 1] */
    const int32_t *keep_slot;          /* [keeps]: results are in these slots in that phase */
    const int32_t *piece_first;        /* [keeps + 1] */
    const Piece *piece;
    const char *a, *b, *zero;          /* blocks of operands, the words of a tile's A and B one after the other */
    int64_t a_block_bytes, b_block_bytes, a_image_bytes, b_image_bytes;
    const int32_t *a_block, *b_block;  /* [tiles] */
    const int32_t *first_row, *first_column; /* [tiles]: of its block of C */
} Stream;

/* `lanes` machines that begin in phase `first` of period[lane], and run for `cycles`. */
typedef struct {
    int32_t lanes, first, cycles, rows, snapshots, nodes;
    const int32_t *image, *period;
    const golden_t *start;             /* states */
    const int64_t *start_of;           /* [lanes], index of a state */
    const Row *row;                    /* in order of `on`; fault: lane; on, off: since the beginning of the window */
    const Snapshot *snapshot;          /* in order of cycle */
    golden_t *state;                   /* [to] states for snapshots; without any, [lanes] those that differ at the end */
    golden_t *kept;                    /* [periods][row], with lane's first period at kept_of[lane]; or NULL */
    const golden_t *golden;            /* the same of the fault-free run: differences are listed; or NULL */
    const int64_t *kept_of;
    u64 *sums;                         /* [rows_of_c][columns][LANES]: added to; or NULL */
    const golden_t *end;               /* states of the fault-free run at the end, or NULL */
    const int64_t *end_of;             /* [lanes]; -1: not compared */
    uint8_t *differs;                  /* [lanes]: state at the end */
    const Form *node;                  /* [nodes]: those that are computed, in order; NULL: all */
    const uint8_t *counted;            /* [keeps]: which of them are added up; NULL: all */
    const int32_t *add_from, *add_to;  /* [lanes]: the step from which results are added up, and in which column of sums;
                                        * NULL: all, in the column of the lane, and all lanes are in one period */
} Chunk;

#if GATE
#define EACH_TYPE(bytes, DO) DO(u64)
#else
#define EACH_TYPE BY_TYPE
#endif

/* -- operands ---------------------------------------------------------------------------------------------------- */

/* Eight words of eight bytes, so that byte j of word i becomes byte i of word j. */
static inline void transpose8(u64 *x) {
#define SWAP(i, j, bits, mask) { u64 t = (x[i] >> bits ^ x[j]) & mask; x[j] ^= t; x[i] ^= t << bits; }
#define SWAPS(a, b, c, d, step, bits, mask) \
    SWAP(a, a + step, bits, mask) SWAP(b, b + step, bits, mask) SWAP(c, c + step, bits, mask) SWAP(d, d + step, bits, mask)
    SWAPS(0, 1, 2, 3, 4, 32, 0x00000000ffffffffull)
    SWAPS(0, 1, 4, 5, 2, 16, 0x0000ffff0000ffffull)
    SWAPS(0, 2, 4, 6, 1, 8, 0x00ff00ff00ff00ffull)
#undef SWAPS
#undef SWAP
}

#if GATE
static void planes(char *out, const char *word, int width) {
    for (int block = 0; block < LANES / 64; block++) {
        const char *lanes = word + 64 * block;
#ifdef __AVX512BW__
        __m512i v = _mm512_loadu_si512(lanes);
        for (int bit = 0; bit < width; bit++)
            ((u64 *)(out + 64 * bit))[block] = _mm512_movepi8_mask(_mm512_slli_epi16(v, 7 - bit));
#else
        for (int bit = 0; bit < width; bit++) {
            u64 plane = 0, x;
            for (int k = 0; k < 8; k++) {
                memcpy(&x, lanes + 8 * k, 8);
                plane |= ((x >> bit & 0x0101010101010101ull) * 0x0102040810204080ull >> 56) << 8 * k;
            }
            ((u64 *)(out + 64 * bit))[block] = plane;
        }
#endif
    }
}
#endif

/* Eight words of so many lanes, side by side, from `at` bytes behind each lane's source. */
static void interleave(char *out, const char *const *source, int64_t at, int bytes, int width, int lanes) {
#if GATE
    char row[8][LANES] __attribute__((aligned(64)));
#endif
    if (bytes == 1) {
        for (int l = 0; l < lanes; l += 8) {
            u64 x[8];
            for (int k = 0; k < 8; k++) memcpy(x + k, source[l + k] + at, 8);
            transpose8(x);
#if GATE
            for (int k = 0; k < 8; k++) memcpy(row[k] + l, x + k, 8);
#else
            for (int k = 0; k < 8; k++) memcpy(out + LANES * k + l, x + k, 8);
#endif
        }
#if GATE
        for (int k = 0; k < 8; k++) planes(out + 64 * width * k, row[k], width);
#endif
        return;
    }
    for (int k = 0; k < 8; k++)
        for (int l = 0; l < lanes; l++) {
            u64 x = 0;
            memcpy(&x, source[l] + at + bytes * k, bytes);
#if GATE
            for (int bit = 0; bit < width; bit++) put(out + 64 * (width * k + bit), 1, l, x >> bit);
#else
            memcpy(out + bytes * (LANES * k + l), &x, bytes);
#endif
        }
}

static const char *block(const Stream *s, const char *blocks, const int32_t *of, int64_t bytes, int64_t image_bytes,
                         int image, int tile) {
    return tile < 0 || tile >= s->tiles ? s->zero : blocks + image * image_bytes + of[tile] * bytes;
}

/* Words of each lane's tile, side by side; those of A are from these places, and there for phases low .. high - 1. */
typedef struct { char *words; const char *a[LANES]; int low, high; } Operands;

/* The operands that are on inputs in phases low .. high - 1 of each lane's period. Tiles that follow each other often
 * have the same words of A. */
static void fetch(const Stream *s, const Chunk *c, int step, int low, int high, Operands *operands) {
    const int groups = s->words / 8, row = GATE ? 64 * s->width : LANES * s->bytes;
    const char *a[LANES], *b[LANES];
    for (int back = 0; back < s->backs; back++) {
        Operands *o = operands + back;
        const int32_t *first = s->first_use + back * groups, *last = s->last_use + back * groups;
        int found = 0, there = 0;
        for (int g = 0; g < groups; g++) {
            if (first[g] >= high || last[g] < low) continue;
            if (!found++) {
                for (int l = 0; l < LANES; l++) {
                    int tile = l < c->lanes ? c->period[l] + step - back : -1, image = l < c->lanes ? c->image[l] : 0;
                    a[l] = block(s, s->a, s->a_block, s->a_block_bytes, s->a_image_bytes, image, tile);
                    b[l] = block(s, s->b, s->b_block, s->b_block_bytes, s->b_image_bytes, image, tile);
                }
                there = o->low <= low && o->high >= high && !memcmp(o->a, a, sizeof a);
                if (!there) { memcpy(o->a, a, sizeof a); o->low = low; o->high = high; }
            }
            if (there && g < s->a_groups) continue;
            const char *const *from = g < s->a_groups ? a : b;
            int64_t at = 8ll * s->bytes * (g < s->a_groups ? g : g - s->a_groups);
            interleave(o->words + (int64_t)8 * g * row, from, at, s->bytes, s->width, c->lanes);
        }
    }
}

/* What lies on the inputs: held [inputs] constants; `other` marks those that may hold something else. */
typedef struct { u64 *held; uint8_t *other; int32_t *input_of; } Inputs;

static Inputs make_inputs(const Machine *m, const Stream *s) {
    Inputs in = {calloc(s->inputs + 1, sizeof(u64)), malloc(s->inputs + 1), malloc(sizeof(int32_t) * (m->slots + 1))};
    memset(in.other, 1, s->inputs);
    for (int k = 0; k < m->slots; k++) in.input_of[k] = -1;
    for (int k = 0; k < s->inputs; k++) in.input_of[s->input_slot[k]] = k;
    return in;
}

static inline const char *operand(const Stream *s, int phase, int field, const Operands *operands) {
    int64_t at = (int64_t)phase * s->fields + field;
    return s->back[at] < 0 ? NULL : operands[s->back[at]].words + (int64_t)s->word[at] * (GATE ? 64 * s->width : LANES * s->bytes);
}

static inline void set_inputs(Machine *m, const Stream *s, int phase, const Operands *operands, Inputs in) {
    enum { SHOWN = 2 };
    const u64 *constant = s->constant + (int64_t)phase * s->inputs;
    int partial = 0;
    for (int f = 0; f < s->fields; f++) {
        const char *lanes = operand(s, phase, f, operands);
        if (lanes)
            for (int k = s->wire_first[f]; k < s->wire_first[f + 1]; k++) {
                const Wire *w = s->wire + k;
                if (!w->whole) { partial = 1; continue; }
                memcpy(m->value[0][w->slot], lanes + (GATE ? 64 * w->low : 0), GATE ? 64 : LANES * s->bytes);
                in.other[in.input_of[w->slot]] = SHOWN;
            }
    }
    for (int k = 0; k < s->inputs; k++) {
        if (in.other[k] != SHOWN && (in.other[k] || in.held[k] != constant[k])) {
            fill(m->value[0][s->input_slot[k]], m->bytes[s->input_slot[k]], constant[k]);
            in.held[k] = constant[k];
        }
        in.other[k] = in.other[k] == SHOWN;
    }
    for (int f = 0; f < s->fields && partial; f++) {
        const char *lanes = operand(s, phase, f, operands);
        for (int k = s->wire_first[f]; lanes && k < s->wire_first[f + 1]; k++) {
            const Wire *w = s->wire + k;
            char *to = m->value[0][w->slot];
            if (w->whole) continue;
            in.other[in.input_of[w->slot]] = 1;
            for (int l = 0; l < LANES; l++) {
                u64 x = get(lanes, s->bytes, l) >> w->low & w->ones;
                put(to, m->bytes[w->slot], l, get(to, m->bytes[w->slot], l) | x << w->shift);
            }
        }
    }
}

/* -- states ------------------------------------------------------------------------------------------------------ */

static int64_t state_words(const Machine *m) {
    int64_t words = 0;
    for (int s = 0; s < m->slots; s++) words += m->is_state[s];
    for (int i = 0; i < m->memories; i++) words += m->memory[i].words;
    return words;
}

static void load_states(Machine *m, const Chunk *c, u64 **memory) {
    const int64_t words = state_words(m);
    const golden_t *from[LANES];
    int64_t k = 0;
    int alike = 1;
    for (int l = 0; l < c->lanes; l++) {
        from[l] = c->start + c->start_of[l] * words;
        alike &= from[l] == from[0];
    }
    for (int s = 0; s < m->slots; s++) {
        if (!m->is_state[s]) continue;
        char *v = m->value[0][s];
        if (alike) { fill(v, m->bytes[s], from[0][k++]); continue; }
#if GATE
#define DO(T) for (int l = 0; l < c->lanes; l++) put(v, 1, l, from[l][k]);
#else
#define DO(T) for (int l = 0; l < c->lanes; l++) ((T *)v)[l] = (T)from[l][k];
#endif
        EACH_TYPE(m->bytes[s], DO)
#undef DO
        k++;
    }
    for (int i = 0; i < m->memories; i++)
        for (int64_t w = 0; w < m->memory[i].words; w++, k++)
            for (int l = 0; l < c->lanes; l++) memory[i][w * c->lanes + l] = from[l][k];
}

static void store_state(Machine *m, int par, int lane, int lanes, u64 **memory, golden_t *to) {
    for (int s = 0; s < m->slots; s++) if (m->is_state[s]) *to++ = (golden_t)get(m->value[par][s], m->bytes[s], lane);
    for (int i = 0; i < m->memories; i++)
        for (int64_t w = 0; w < m->memory[i].words; w++) *to++ = (golden_t)memory[i][w * lanes + lane];
}

static void compare_states(Machine *m, const Chunk *c, int par, u64 **memory) {
    const int64_t words = state_words(m);
    for (int l = 0; l < c->lanes; l++) {
        if (c->end_of[l] < 0) continue;
        const golden_t *end = c->end + c->end_of[l] * words;
        for (int s = 0; s < m->slots && !c->differs[l]; s++)
            if (m->is_state[s]) c->differs[l] = get(m->value[par][s], m->bytes[s], l) != *end++;
        for (int i = 0; i < m->memories && !c->differs[l]; i++)
            for (int64_t w = 0; w < m->memory[i].words; w++) c->differs[l] |= memory[i][w * c->lanes + l] != *end++;
    }
}

/* -- results ----------------------------------------------------------------------------------------------------- */

static void add_up(Machine *m, const Stream *s, const Chunk *c, int par, int step, int keep) {
    int slot = s->keep_slot[keep];
    for (int k = s->piece_first[keep]; k < s->piece_first[keep + 1]; k++) {
        const Piece *p = s->piece + k;
        for (int l = 0; c->add_to && l < c->lanes; l++) {
            int tile = c->period[l] + step - p->back;
            if (step < c->add_from[l] || tile < 0 || tile >= s->tiles) continue;
            int row = s->first_row[tile] + p->row, column = s->first_column[tile] + p->column;
            if (row < s->rows_of_c && column < s->columns)
                c->sums[((int64_t)row * s->columns + column) * LANES + c->add_to[l]] +=
                    (get(m->value[par][slot], m->bytes[slot], l) >> p->low & p->ones) << p->to;
        }
        if (c->add_to) continue;
        int tile = c->period[0] + step - p->back;
        if (tile < 0 || tile >= s->tiles) continue;
        int row = s->first_row[tile] + p->row, column = s->first_column[tile] + p->column;
        if (row >= s->rows_of_c || column >= s->columns) continue;
        u64 *sum = c->sums + ((int64_t)row * s->columns + column) * LANES;
#if GATE
        const u64 *bits = (const u64 *)m->value[par][slot];
        for (int l = 0; l < LANES; l++) sum[l] += (bits[l >> 6] >> (l & 63) & 1) << p->to;
#else
#define DO(T) { const T *v = (const T *)m->value[par][slot]; \
    for (int l = 0; l < LANES; l++) sum[l] += ((u64)v[l] >> p->low & p->ones) << p->to; }
        BY_TYPE(m->bytes[slot], DO)
#undef DO
#endif
    }
}

static void keep_results(Machine *m, const Stream *s, const Chunk *c, int par, int step, int phase) {
    for (int k = s->keep_first[phase]; k < s->keep_first[phase + 1]; k++) {
        int slot = s->keep_slot[k], bytes = m->bytes[slot];
        const char *v = m->value[par][slot];
        const int64_t at = (int64_t)step * s->row + k;
        if (c->sums && (!c->counted || c->counted[k])) add_up(m, s, c, par, step, k);
#if GATE
#define DO(T) DO_GET((golden_t)get(v, bytes, l))
#else
#define DO(T) DO_GET(((const T *)v)[l])
#endif
#define DO_GET(value) for (int l = 0; l < c->lanes; l++) c->kept[c->kept_of[l] * s->row + at] = value;
        if (c->kept) { EACH_TYPE(bytes, DO) }
#undef DO_GET
#define DO_GET(value) for (int l = 0; l < c->lanes; l++) \
            if (value != c->golden[c->kept_of[l] * s->row + at]) emit(m, l, step, k, value);
        if (c->golden) { EACH_TYPE(bytes, DO) }
#undef DO_GET
#undef DO
    }
}

/* Sums [elements][LANES] that are not the golden ones [images][elements], modulo 2 ** width, where compared [elements]:
 * fault is the lane, output the element, value the difference. */
int64_t changed_sums(Machine *m, int lanes, int elements, int width, const u64 *sums, const int64_t *golden,
                     const int32_t *image, const uint8_t *compared) {
    enum { TOGETHER = 8 };
    m->differences = 0;
    for (int first = 0; first < elements; first += TOGETHER)
        for (int l = 0; l < lanes; l++)
            for (int e = first; e < elements && e < first + TOGETHER; e++) {
                u64 delta = sums[(int64_t)e * LANES + l] - (u64)golden[(int64_t)image[l] * elements + e];
                if (compared[e] && delta << (64 - width)) emit(m, l, 0, e, delta);
            }
    return m->differences;
}

/* -- windows ----------------------------------------------------------------------------------------------------- */

/* Which period of the short reference stream is like this one; -1: one in the middle, or after the end. */
static int reference(const Stream *s, int period) {
    int skipped = s->tiles - (s->references - s->head + 1);
    if (period >= s->tiles + s->head - 1) return -1;
    if (skipped <= 0 || period < s->head) return period;
    return period < s->tiles ? -1 : period - skipped;
}

/* A slot in which a fault acts, found once. */
typedef struct { char *value[2]; int32_t bytes, lane, off, input; u64 a, x; } Forced;

static Forced make_forced(const Machine *m, const Row *row, Inputs in) {
    char *const *value[2] = {m->value[0], m->value[1]};
    return (Forced){{value[0][row->place], value[1][row->place]}, m->bytes[row->place], row->fault, row->off,
                    in.input_of[row->place], row->a, row->x};
}

static int force_slots(Forced *forced, int count, int t, int par, Inputs in) {
    int kept = 0;
    for (int r = 0; r < count; r++) {
        Forced f = forced[r];
        if (t >= f.off) continue;
        put(f.value[par], f.bytes, f.lane, (get(f.value[par], f.bytes, f.lane) & f.a) ^ f.x);
        if (f.input >= 0) in.other[f.input] = 1;
        if (kept != r) forced[kept] = f;
        kept++;
    }
    return kept;
}

/* Faults that change the masks of hooks once, when they begin, and back when they end. */
typedef struct { const Row **row; int count, next_end; } Masked;

static void mask_hook(Machine *m, Masked *masked, const Row *r, int t) {
    if (r->off <= t) return;
    hook_up(m, r);
    set_hook(m, r, r->fault, r->a, r->x);
    if (!masked->count || r->off < masked->next_end) masked->next_end = r->off;
    masked->row[masked->count++] = r;
}

/* Lets those end that are over in cycle t. */
static void unmask_hooks(Machine *m, Masked *masked, int t) {
    if (!masked->count || t < masked->next_end) return;
    int kept = 0;
    for (int r = 0; r < masked->count; r++) {
        const Row *row = masked->row[r];
        if (t >= row->off) { end_fault(m, row, row->fault); continue; }
        if (!kept || row->off < masked->next_end) masked->next_end = row->off;
        masked->row[kept++] = row;
    }
    masked->count = kept;
}

/* Differences are appended to those of the machine: fault is the lane, cycle the period since the first, output the
 * number of the result. */
int64_t run_window(Machine *m, const Stream *s, const Chunk *c, u64 **memory) {
    const int row = GATE ? 64 * s->width : LANES * s->bytes;
    Operands *operands = calloc(s->backs, sizeof *operands);
    for (int back = 0; back < s->backs; back++) operands[back].words = aligned_alloc(64, (int64_t)s->words * row + 64);
    Row *acting = malloc(sizeof(Row) * (c->rows + 1));
    Inputs in = make_inputs(m, s);
    Forced *forced = malloc(sizeof(Forced) * (c->rows + 1));
    Masked masked = {malloc(sizeof(Row *) * (c->rows + 1))};
    int forcing = 0, active = 0, next_row = 0, next_snapshot = 0, special[LANES], like[LANES], specials = 0;
    m->differences = 0;
    load_states(m, c, memory);
    const int64_t words = state_words(m);
    int phase = c->first, step = 0;
    for (int t = 0; t <= c->cycles; t++) {
        int par = t & 1;
        for (; next_snapshot < c->snapshots && c->snapshot[next_snapshot].cycle == t; next_snapshot++) {
            const Snapshot *to = c->snapshot + next_snapshot;
            store_state(m, par, to->lane, c->lanes, memory, c->state + to->to * words);
        }
        if (t == c->cycles) break;
        if (phase == s->interval) { phase = 0; step++; }
        if (!phase || !t) {
            int left = c->cycles - t, high = phase + left < s->interval ? phase + left : s->interval;
            fetch(s, c, step, phase, high, operands);
            specials = 0;
            for (int l = 0; l < c->lanes; l++)
                if ((like[specials] = reference(s, c->period[l] + step)) >= 0) special[specials++] = l;
        }
        set_inputs(m, s, phase, operands, in);
        for (int k = 0; k < specials; k++) {
            const int32_t *first = s->patch_first + (int64_t)like[k] * (s->interval + 1) + phase;
            for (int p = first[0]; p < first[1]; p++) {
                int slot = s->input_slot[s->patch[p].input];
                put(m->value[0][slot], m->bytes[slot], special[k], s->patch[p].value);
                in.other[s->patch[p].input] = 1;
            }
        }
        unmask_hooks(m, &masked, t);
        for (; next_row < c->rows && c->row[next_row].on <= t; next_row++) {
            const Row *r = c->row + next_row;
            if (r->kind == AT_SLOT) forced[forcing++] = make_forced(m, r, in);
            else if (r->kind == AT_HOOK && r->way == APPLY) mask_hook(m, &masked, r, t);
            else acting[active++] = *r;
        }
        forcing = force_slots(forced, forcing, t, par, in);
        run_cycle(m, t, par, c->lanes, active, acting, memory, c->node ? c->nodes : m->nodes, c->node);
        write_memories(m, par, c->lanes, memory);
        keep_results(m, s, c, par, step, phase);
        int kept = 0;
        for (int r = 0; r < active; r++)
            if (acting[r].off > t + (acting[r].kind != AT_HOOK)) acting[kept++] = acting[r];
        active = kept;
        phase++;
    }
    for (int r = 0; r < active; r++)
        if (acting[r].kind == AT_HOOK) end_fault(m, acting + r, acting[r].fault);
    unmask_hooks(m, &masked, INT32_MAX);
    if (c->end) {
        compare_states(m, c, c->cycles & 1, memory);
        for (int l = 0; l < c->lanes; l++)
            if (c->differs[l]) store_state(m, c->cycles & 1, l, c->lanes, memory, c->state + l * words);
    }
    for (int back = 0; back < s->backs; back++) free(operands[back].words);
    free(operands); free(acting); free(forced); free(masked.row); free(in.held); free(in.other); free(in.input_of);
    return m->differences;
}
