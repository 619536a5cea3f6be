/* Runs a compiled design with a machine in each lane.
 *
 * Two ways, which must agree:
 *  - run_plain computes every node in every cycle; lanes may differ in their inputs;
 *  - run_active keeps all lanes on one fault-free run, whose values of all slots are known (the golden trace), and
 *    computes a node only where a machine differs from it ("dirty" slots), or where a fault is present.
 *
 * A slot holds LANES values. States have two copies, for even and odd cycles.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

#if GATE
#define LANES 512
typedef uint8_t golden_t;
#else
#define LANES 64
typedef uint64_t golden_t;
#endif
#define MASK (LANES / 64)
typedef uint64_t u64;
typedef u64 W __attribute__((vector_size(64)));

enum { SLICE, GLUE, READ };
enum { AT_SLOT, AT_HOOK, AT_MEMORY };
enum { APPLY, DELAY_RISE, DELAY_FALL, DELAY_BOTH, HOLD, BRIDGE_AND, BRIDGE_OR, BRIDGE_TAKE };
#define BRIDGE_PASSES 8

typedef struct {
    int32_t type, reads, writes, first; /* arguments first .. first + reads + writes − 1 */
    int32_t memory, glue, glues, unused;
    u64 constant;
    void (*clean)(char *const *);
    void (*hooked)(char *const *, char *);
} Node;

typedef struct { int32_t node, unused; void (*clean)(char *const *); } Form; /* what may stand for the node's own */
typedef struct { int32_t argument, low, bits, to; } Part;
typedef struct { int32_t words, width, offset, first_write, writes; } Memory;
typedef struct { int32_t address, addresses, data, datas, enable, enables; } Write; /* into arguments */

/* v <- (v AND a) XOR x in cycles on .. off - 1, in a slot, at a hook of a node, or in a word of a memory. A bridge
 * has a row at each of its nets: word is the node of the other net, a the offset of its masks. */
typedef struct {
    int32_t fault, kind, place, offset, size, way;
    int32_t on, off;
    int64_t word;
    u64 a, x;
} Row;

typedef struct { int32_t fault, cycle, output; int32_t pad; u64 value; } Difference;

typedef struct {
    int nodes, slots, memories, arguments_;
    Node *node;
    Part *part;
    Memory *memory;
    Write *write;
    int32_t *argument;                    /* slot of each argument */
    char **pointer[2];                    /* where it lies in even and odd cycles */
    char **written[2];
    int32_t *bytes;                       /* of a lane of each slot */
    uint8_t *is_state;
    char *base;
    char **value[2];                      /* lanes of each slot in even and odd cycles */
    int32_t *fan_first, *fan;             /* nodes that read each slot */
    int32_t *reader_first, *reader;       /* read nodes of each memory */
    char **hook;                          /* masks of each node, made on first use */
    int32_t **first_site;                 /* gate level: [offset / 64], 64ths before the first site of the same cell */
    uint16_t **faults_in;                 /* gate level, behind the masks: [that], how many faults a cell has; of other sites, [offset / 64] */
    int32_t *hooks;                       /* faults present at each node */
    u64 *mask[2];                         /* lanes in which a slot differs */
    int32_t *dirty[2]; int dirty_count[2];
    u64 *pending[2];
    int64_t *stamp, serial;
    u64 ***row;                           /* words of memories of which a lane differs: [memory][word] -> lanes */
    u64 ***row_mask;
    u64 **image;                          /* fault-free words of memories */
    int32_t **touched; int *touched_count, *touched_room;
    u64 *memory_mask;
    Difference *difference; int64_t differences, room;
    const golden_t *window;               /* fault-free values [window_last - window_first + 1][slots] */
    int window_first, window_last;
    u64 **window_memory;                  /* words of memories in cycle window_first */
    void (*fetch)(int);                   /* lets the window begin at or before a cycle and end after it; or NULL */
} Machine;

static inline int any(const u64 *m) {
    u64 r = 0;
    for (int i = 0; i < MASK; i++) r |= m[i];
    return r != 0;
}
static inline void set_bit(u64 *m, int lane) { m[lane >> 6] |= 1ull << (lane & 63); }
static inline void clear_bit(u64 *m, int lane) { m[lane >> 6] &= ~(1ull << (lane & 63)); }
static inline int get_bit(const u64 *m, int lane) { return m[lane >> 6] >> (lane & 63) & 1; }

/* -- lanes ------------------------------------------------------------------------------------------------------ */

#if GATE
static inline u64 get(const char *v, int bytes, int lane) { return get_bit((const u64 *)v, lane); }
static inline void put(char *v, int bytes, int lane, u64 x) {
    clear_bit((u64 *)v, lane);
    if (x & 1) set_bit((u64 *)v, lane);
}
static inline void fill(char *v, int bytes, u64 x) { *(W *)v = (W){} - (x & 1); }
static inline int compare(const char *v, int bytes, u64 golden, u64 *mask) {
    W d = *(const W *)v ^ ((W){} - golden);
    *(W *)mask = d;
    return any((u64 *)&d);
}
static inline void restore(char *v, int bytes, u64 golden, const u64 *lanes) {
    u64 *w = (u64 *)v, g = 0 - (golden & 1);
    for (int i = 0; i < MASK; i++) w[i] = (w[i] & ~lanes[i]) | (g & lanes[i]);
}
#else
#define BY_TYPE(bytes, DO) \
    switch (bytes) { case 1: DO(uint8_t) break; case 2: DO(uint16_t) break; case 4: DO(uint32_t) break; default: DO(u64) }
static inline u64 get(const char *v, int bytes, int lane) {
#define DO(T) return ((const T *)v)[lane];
    BY_TYPE(bytes, DO)
#undef DO
    return 0;
}
static inline void put(char *v, int bytes, int lane, u64 x) {
#define DO(T) ((T *)v)[lane] = (T)x;
    BY_TYPE(bytes, DO)
#undef DO
}
static inline void fill(char *v, int bytes, u64 x) {
#define DO(T) for (int l = 0; l < LANES; l++) ((T *)v)[l] = (T)x;
    BY_TYPE(bytes, DO)
#undef DO
}
static inline int compare(const char *v, int bytes, u64 golden, u64 *mask) {
#ifdef __AVX512BW__
    u64 m = 0;
    switch (bytes) {
    case 1: m = _mm512_cmpneq_epi8_mask(_mm512_load_si512(v), _mm512_set1_epi8((char)golden)); break;
    case 2: for (int i = 0; i < 2; i++)
        m |= (u64)_mm512_cmpneq_epi16_mask(_mm512_load_si512(v + 64 * i), _mm512_set1_epi16((short)golden)) << 32 * i;
        break;
    case 4: for (int i = 0; i < 4; i++)
        m |= (u64)_mm512_cmpneq_epi32_mask(_mm512_load_si512(v + 64 * i), _mm512_set1_epi32((int)golden)) << 16 * i;
        break;
    default: for (int i = 0; i < 8; i++)
        m |= (u64)_mm512_cmpneq_epi64_mask(_mm512_load_si512(v + 64 * i), _mm512_set1_epi64((int64_t)golden)) << 8 * i;
    }
    *mask = m;
#else
#define DO(T) { T d = 0; for (int l = 0; l < LANES; l++) d |= ((const T *)v)[l] ^ (T)golden; \
    u64 m = 0; if (d) for (int l = 0; l < LANES; l++) m |= (u64)(((const T *)v)[l] != (T)golden) << l; *mask = m; }
    BY_TYPE(bytes, DO)
#undef DO
#endif
    return *mask != 0;
}
static inline void restore(char *v, int bytes, u64 golden, const u64 *lanes) {
    for (u64 m = *lanes; m; m &= m - 1) put(v, bytes, __builtin_ctzll(m), golden);
}
#endif

#define EACH_LANE(lane, m) \
    for (int i_ = 0, lane; i_ < MASK; i_++) \
        for (u64 m_ = (m)[i_]; m_ && (lane = 64 * i_ + __builtin_ctzll(m_), 1); m_ &= m_ - 1)

/* -- making ------------------------------------------------------------------------------------------------------ */

Machine *machine_new(int nodes, const Node *node, int parts, const Part *part, int memories, const Memory *memory,
                     int writes, const Write *write, int arguments, const int32_t *argument, int slots,
                     const int32_t *bytes, const uint8_t *is_state) {
    Machine *m = calloc(1, sizeof *m);
#define COPY(name, count) m->name = malloc(sizeof(*name) * ((count) + 1)); memcpy(m->name, name, sizeof(*name) * (count));
    COPY(node, nodes) COPY(part, parts) COPY(memory, memories) COPY(write, writes) COPY(argument, arguments)
    COPY(bytes, slots) COPY(is_state, slots)
    m->nodes = nodes; m->memories = memories; m->slots = slots; m->arguments_ = arguments;
    int64_t total = 0;
    for (int s = 0; s < slots; s++) total += (int64_t)(GATE ? 64 : LANES * bytes[s]) * (1 + is_state[s]);
    m->base = aligned_alloc(64, total + 64);
    memset(m->base, 0, total + 64);
    char *at = m->base;
    for (int p = 0; p < 2; p++) m->value[p] = malloc(sizeof(char *) * (slots + 1));
    for (int s = 0; s < slots; s++) {
        int size = GATE ? 64 : LANES * bytes[s];
        m->value[0][s] = m->value[1][s] = at;
        at += size;
        if (is_state[s]) { m->value[1][s] = at; at += size; }
    }
    m->fan_first = calloc(slots + 2, sizeof(int32_t));
    for (int n = 0; n < nodes; n++)
        for (int k = 0; k < node[n].reads; k++) m->fan_first[argument[node[n].first + k] + 1]++;
    for (int s = 0; s < slots; s++) m->fan_first[s + 1] += m->fan_first[s];
    m->fan = malloc(sizeof(int32_t) * (m->fan_first[slots] + 1));
    int32_t *next = malloc(sizeof(int32_t) * (slots + 1));
    memcpy(next, m->fan_first, sizeof(int32_t) * (slots + 1));
    for (int n = 0; n < nodes; n++)
        for (int k = 0; k < node[n].reads; k++) m->fan[next[argument[node[n].first + k]]++] = n;
    free(next);
    m->reader_first = calloc(memories + 2, sizeof(int32_t));
    m->reader = malloc(sizeof(int32_t) * (nodes + 1));
    int count = 0;
    for (int i = 0; i < memories; i++) {
        m->reader_first[i] = count;
        for (int n = 0; n < nodes; n++) if (node[n].type == READ && node[n].memory == i) m->reader[count++] = n;
    }
    m->reader_first[memories] = count;
    for (int p = 0; p < 2; p++) {
        m->pointer[p] = malloc(sizeof(char *) * (arguments + 1));
        for (int n = 0; n < nodes; n++)
            for (int k = 0; k < node[n].reads + node[n].writes; k++) {
                int s = argument[node[n].first + k];
                int writes_state = k >= node[n].reads && is_state[s];
                m->pointer[p][node[n].first + k] = m->value[writes_state ? 1 - p : p][s];
            }
        m->mask[p] = aligned_alloc(64, sizeof(u64) * MASK * (slots + 8));
        memset(m->mask[p], 0, sizeof(u64) * MASK * (slots + 8));
        m->dirty[p] = malloc(sizeof(int32_t) * (BRIDGE_PASSES * slots + 1));
        m->pending[p] = calloc(nodes / 64 + 2, sizeof(u64));
    }
    m->stamp = calloc(slots + 1, sizeof(int64_t));
    m->serial = 1;
    m->hook = calloc(nodes + 1, sizeof(char *));
    m->hooks = calloc(nodes + 1, sizeof(int32_t));
    m->first_site = calloc(nodes + 1, sizeof(int32_t *));
    m->faults_in = calloc(nodes + 1, sizeof(uint16_t *));
    m->row = calloc(memories + 1, sizeof(void *));
    m->row_mask = calloc(memories + 1, sizeof(void *));
    m->image = calloc(memories + 1, sizeof(void *));
    m->touched = calloc(memories + 1, sizeof(void *));
    m->touched_count = calloc(memories + 1, sizeof(int));
    m->touched_room = calloc(memories + 1, sizeof(int));
    m->memory_mask = calloc((memories + 1) * MASK, sizeof(u64));
    for (int i = 0; i < memories; i++) {
        m->row[i] = calloc(memory[i].words, sizeof(void *));
        m->row_mask[i] = calloc(memory[i].words, sizeof(void *));
        m->image[i] = calloc(memory[i].words, sizeof(u64));
    }
    return m;
}

static void forget_row(Machine *m, int i, int word) {
    free(m->row[i][word]); free(m->row_mask[i][word]);
    m->row[i][word] = m->row_mask[i][word] = NULL;
}

void machine_free(Machine *m) {
    for (int i = 0; i < m->memories; i++) {
        for (int w = 0; w < m->memory[i].words; w++) forget_row(m, i, w);
        free(m->row[i]); free(m->row_mask[i]); free(m->image[i]); free(m->touched[i]);
    }
    for (int n = 0; n < m->nodes; n++) { free(m->hook[n]); free(m->first_site[n]); }
    for (int p = 0; p < 2; p++) {
        free(m->value[p]); free(m->pointer[p]); free(m->mask[p]); free(m->dirty[p]); free(m->pending[p]);
    }
    free(m->node); free(m->part); free(m->memory); free(m->write); free(m->argument); free(m->bytes);
    free(m->is_state); free(m->base); free(m->fan_first); free(m->fan); free(m->reader_first); free(m->reader);
    free(m->hook); free(m->hooks); free(m->first_site); free(m->faults_in); free(m->stamp); free(m->row); free(m->row_mask); free(m->image);
    free(m->touched); free(m->touched_count); free(m->touched_room); free(m->memory_mask); free(m->difference);
    free(m);
}

/* -- hooks ------------------------------------------------------------------------------------------------------- */

/* Hook memory of a node, on first use: masks that let every value pass. */
void make_hooks(Machine *m, int n, int bytes, int sites, const int32_t *offset, const int32_t *size,
                const int32_t *first, void *hooked) {
    if (m->hook[n]) return;
    m->node[n].hooked = (void (*)(char *const *, char *))hooked;
    int64_t all = (bytes + sizeof(uint16_t) * (bytes / 64) + 127) / 64 * 64;
    char *h = m->hook[n] = aligned_alloc(64, all);
    memset(h, 0, all);
    for (int k = 0; k < sites; k++) memset(h + offset[k], 0xff, size[k]);
    if (!GATE) return;
    m->faults_in[n] = (uint16_t *)(h + bytes);
    m->first_site[n] = calloc(bytes / 64 + 1, sizeof(int32_t));
    for (int k = 0; k < sites; k++) m->first_site[n][offset[k] / 64] = first[k] / 64;
}

static void set_hook(Machine *m, const Row *r, int lane, u64 a, u64 x) {
    char *h = m->hook[r->place];
    int bytes = r->size / LANES;
    put(h + r->offset, bytes, lane, a);
    put(h + r->offset + r->size, bytes, lane, x);
}
static u64 raw_value(Machine *m, const Row *r, int lane) {
    return get(m->hook[r->place] + r->offset + 2 * r->size, r->size / LANES, lane);
}

/* What a net reads: what drives it, through its masks. */
static u64 seen_value(Machine *m, const Row *r, int lane) {
    const char *h = m->hook[r->place] + r->offset;
    int bytes = r->size / LANES;
    return (get(h + 2 * r->size, bytes, lane) & get(h, bytes, lane)) ^ get(h + r->size, bytes, lane);
}

/* A fault or a look at a net begins (1) or ends (-1). */
static void count_fault(Machine *m, const Row *r, int change) {
    m->hooks[r->place] += change;
    if (!GATE) return;
    int site = r->offset / 64, first = m->first_site[r->place][site];
    m->faults_in[r->place][first] += change;
    if (site != first) m->faults_in[r->place][site] += change;
}
static void hook_up(Machine *m, const Row *r) { count_fault(m, r, 1); }
static void unhook(Machine *m, const Row *r) { count_fault(m, r, -1); }
static void end_fault(Machine *m, const Row *r, int lane) { unhook(m, r); set_hook(m, r, lane, ~0ull, 0); }

/* What a fault at a hook does in a cycle, before anything is computed. */
static void present(Machine *m, const Row *f, int lane, int t) {
    if (t == f->on) {
        hook_up(m, f);
        if (f->way == APPLY) set_hook(m, f, lane, f->a, f->x);
    } else if (f->way >= DELAY_RISE && f->way <= HOLD) {
        u64 before = raw_value(m, f, lane), bit = f->x, a = ~bit, x = before & bit;
        if (f->way == DELAY_RISE) { a |= before; x = 0; }
        if (f->way == DELAY_FALL) a |= ~before;
        if (f->way != HOLD || t == f->on + 1) set_hook(m, f, lane, a, x);
    }
}
/* Put onto a bridged net what its drivers, as just computed, make of it; whether that changed anything. The net holds
 * this value while they are computed again: a loop through one bridge settles at the second change, or never. */
static int meet(Machine *m, const Row *f, int lane) {
    if (f->way < BRIDGE_AND) return 0;
    char *own = m->hook[f->place] + f->offset;
    u64 value = get(m->hook[f->word] + f->a + 2 * f->size, 0, lane);
    if (f->way == BRIDGE_AND) value &= raw_value(m, f, lane);
    if (f->way == BRIDGE_OR) value |= raw_value(m, f, lane);
    if (!get(own, 0, lane) && get(own + f->size, 0, lane) == value) return 0;
    set_hook(m, f, lane, 0, value);
    return 1;
}

/* -- memories ---------------------------------------------------------------------------------------------------- */

static u64 assemble(Machine *m, int par, int first, int count, int lane) {
    u64 x = 0;
    for (int k = 0; k < count; k++) {
        int s = m->argument[first + k];
        x |= get(m->value[par][s], m->bytes[s], lane) << (GATE ? k : 0);
    }
    return x;
}
static u64 assemble_golden(Machine *m, const golden_t *row, int first, int count) {
    u64 x = 0;
    for (int k = 0; k < count; k++) x |= (u64)row[m->argument[first + k]] << (GATE ? k : 0);
    return x;
}
static inline int64_t word_of(const Memory *memory, u64 address) {
    int64_t w = (int64_t)address - memory->offset;
    return w >= 0 && w < memory->words ? w : -1;
}
static u64 *make_row(Machine *m, int i, int64_t word) {
    if (!m->row[i][word]) {
        u64 *lanes = m->row[i][word] = malloc(sizeof(u64) * LANES);
        m->row_mask[i][word] = calloc(MASK, sizeof(u64));
        for (int l = 0; l < LANES; l++) lanes[l] = m->image[i][word];
        if (m->touched_count[i] == m->touched_room[i])
            m->touched[i] = realloc(m->touched[i], sizeof(int32_t) * (m->touched_room[i] = 2 * m->touched_room[i] + 16));
        m->touched[i][m->touched_count[i]++] = (int32_t)word;
    }
    return m->row[i][word];
}
/* Which lanes of which words differ; rows that differ nowhere go. */
static void settle_memory(Machine *m, int i) {
    u64 *total = m->memory_mask + i * MASK;
    memset(total, 0, sizeof(u64) * MASK);
    int kept = 0;
    for (int k = 0; k < m->touched_count[i]; k++) {
        int word = m->touched[i][k];
        u64 *lanes = m->row[i][word], *mask = m->row_mask[i][word], image = m->image[i][word];
        memset(mask, 0, sizeof(u64) * MASK);
        for (int l = 0; l < LANES; l++) if (lanes[l] != image) set_bit(mask, l);
        if (any(mask)) {
            for (int j = 0; j < MASK; j++) total[j] |= mask[j];
            m->touched[i][kept++] = word;
        } else forget_row(m, i, word);
    }
    m->touched_count[i] = kept;
}
static void clear_memory(Machine *m, int i) {
    for (int k = 0; k < m->touched_count[i]; k++) forget_row(m, i, m->touched[i][k]);
    m->touched_count[i] = 0;
    memset(m->memory_mask + i * MASK, 0, sizeof(u64) * MASK);
}
static void golden_writes(Machine *m, const golden_t *row) {
    for (int i = 0; i < m->memories; i++)
        for (int k = 0; k < m->memory[i].writes; k++) {
            Write *w = m->write + m->memory[i].first_write + k;
            u64 enable = assemble_golden(m, row, w->enable, w->enables);
            int64_t word = word_of(m->memory + i, assemble_golden(m, row, w->address, w->addresses));
            if (enable && word >= 0)
                m->image[i][word] = (m->image[i][word] & ~enable) | (assemble_golden(m, row, w->data, w->datas) & enable);
        }
}
static void port_mask(Machine *m, int cur, int first, int count, u64 *mask) {
    for (int k = 0; k < count; k++)
        for (int j = 0; j < MASK; j++) mask[j] |= m->mask[cur][m->argument[first + k] * MASK + j];
}
static void active_writes(Machine *m, const golden_t *row, int cur) {
    for (int i = 0; i < m->memories; i++) {
        int changed = m->touched_count[i] > 0;
        for (int k = 0; k < m->memory[i].writes; k++) {
            Write *w = m->write + m->memory[i].first_write + k;
            u64 odd[MASK] = {0};
            port_mask(m, cur, w->address, w->addresses, odd);
            port_mask(m, cur, w->data, w->datas, odd);
            port_mask(m, cur, w->enable, w->enables, odd);
            u64 enable = assemble_golden(m, row, w->enable, w->enables);
            u64 data = assemble_golden(m, row, w->data, w->datas);
            int64_t word = word_of(m->memory + i, assemble_golden(m, row, w->address, w->addresses));
            int golden = enable && word >= 0;
            if (any(odd)) {
                changed = 1;
                /* slots of a port that are clean may not have been filled in this cycle */
                for (int part = 0; part < 3; part++) {
                    int first = part == 0 ? w->address : part == 1 ? w->data : w->enable;
                    int count = part == 0 ? w->addresses : part == 1 ? w->datas : w->enables;
                    for (int j = 0; j < count; j++) {
                        int s = m->argument[first + j];
                        if (!any(m->mask[cur] + s * MASK)) fill(m->value[cur][s], m->bytes[s], row[s]);
                    }
                }
                if (golden) make_row(m, i, word);
                EACH_LANE(lane, odd) {
                    u64 e = assemble(m, cur, w->enable, w->enables, lane);
                    int64_t at = word_of(m->memory + i, assemble(m, cur, w->address, w->addresses, lane));
                    if (e && at >= 0) {
                        u64 *lanes = make_row(m, i, at);
                        lanes[lane] = (lanes[lane] & ~e) | (assemble(m, cur, w->data, w->datas, lane) & e);
                    }
                }
            }
            if (golden) {
                if (m->row[i][word])
                    for (int l = 0; l < LANES; l++)
                        if (!get_bit(odd, l)) m->row[i][word][l] = (m->row[i][word][l] & ~enable) | (data & enable);
                m->image[i][word] = (m->image[i][word] & ~enable) | (data & enable);
            }
        }
        if (changed) settle_memory(m, i);
    }
}

/* -- nodes ------------------------------------------------------------------------------------------------------- */

static void glue(Machine *m, const Node *n, int par) {
    int out = m->argument[n->first + n->reads];
    char *v = m->value[par][out];
    fill(v, m->bytes[out], n->constant);
    for (int k = 0; k < n->glues; k++) {
        Part *p = m->part + n->glue + k;
        int s = m->argument[n->first + p->argument];
#if GATE
        *(W *)v |= *(W *)m->value[par][s];
#else
        u64 ones = p->bits == 64 ? ~0ull : (1ull << p->bits) - 1;
        for (int l = 0; l < LANES; l++)
            put(v, m->bytes[out], l, get(v, m->bytes[out], l) | (get(m->value[par][s], m->bytes[s], l) >> p->low & ones) << p->to);
#endif
    }
}

static void put_data(Machine *m, const Node *n, int par, int lane, u64 x) {
    for (int k = 0; k < n->writes; k++) {
        int s = m->argument[n->first + n->reads + k];
        put(m->value[par][s], m->bytes[s], lane, GATE ? x >> k : x);
    }
}

static void read_active(Machine *m, const Node *n, const golden_t *row, int cur) {
    u64 odd[MASK] = {0};
    port_mask(m, cur, n->first, n->reads, odd);
    int i = n->memory;
    int64_t golden = word_of(m->memory + i, assemble_golden(m, row, n->first, n->reads));
    if (golden >= 0 && m->row[i][golden]) for (int j = 0; j < MASK; j++) odd[j] |= m->row_mask[i][golden][j];
    for (int k = 0; k < n->writes; k++) {
        int s = m->argument[n->first + n->reads + k];
        fill(m->value[cur][s], m->bytes[s], row[s]);
    }
    EACH_LANE(lane, odd) {
        int64_t at = word_of(m->memory + i, assemble(m, cur, n->first, n->reads, lane));
        put_data(m, n, cur, lane, at < 0 ? 0 : m->row[i][at] ? m->row[i][at][lane] : m->image[i][at]);
    }
}

static inline void run_slice(Machine *m, int n, int par, void (*clean)(char *const *)) {
    Node *node = m->node + n;
    if (m->hooks[n]) node->hooked(m->pointer[par] + node->first, m->hook[n]);
    else clean(m->pointer[par] + node->first);
}

/* What was read passes through the masks of its slots: three areas each, as for the outputs of slices. */
static void mask_read(Machine *m, int n, int par) {
    Node *node = m->node + n;
    char *h = m->hook[n];
    for (int k = 0; m->hooks[n] && k < node->writes; k++) {
        int s = m->argument[node->first + node->reads + k], bytes = m->bytes[s], size = GATE ? 64 : LANES * bytes;
        char *v = m->value[par][s];
        memcpy(h + 2 * size, v, size);
        for (int i = 0; i < size / 64; i++)
            ((W *)v)[i] = (((W *)v)[i] & ((W *)h)[i]) ^ ((W *)(h + size))[i];
        h += 3 * size;
    }
}

/* -- every node in every cycle ----------------------------------------------------------------------------------- */

/* The cycle t up to its end: what faults do in it, and the nodes in `list`, all if NULL; memory [memories] ->
 * [words][lanes]. Rows of fault f act in lane f. */
static void run_cycle(Machine *m, int t, int par, int lanes, int rows, const Row *row, u64 **memory, int nodes,
                      const Form *list) {
    int bridges = 0;
    for (int r = 0; r < rows; r++) {
        const Row *f = row + r;
        int lane = f->fault;
        if (f->kind == AT_HOOK) {
            if (t >= f->on && t < f->off) present(m, f, lane, t);
            bridges |= f->way >= BRIDGE_AND && t >= f->on && t < f->off;
            if (t == f->off && f->on < f->off) end_fault(m, f, lane);
        } else if (t >= f->on && t < f->off) {
            if (f->kind == AT_SLOT) {
                char *v = m->value[par][f->place];
                put(v, m->bytes[f->place], lane, (get(v, m->bytes[f->place], lane) & f->a) ^ f->x);
            } else {
                u64 *w = memory[f->place] + f->word * lanes + lane;
                *w = (*w & f->a) ^ f->x;
            }
        }
    }
    for (int pass = 0, again = 1; again && pass < BRIDGE_PASSES; pass++) {
        for (int k = 0; k < nodes; k++) {
            const int n = list ? list[k].node : k;
            Node *node = m->node + n;
            if (node->type == SLICE) run_slice(m, n, par, list ? list[k].clean : node->clean);
            else if (node->type == GLUE) glue(m, node, par);
            else {
                for (int l = 0; l < lanes; l++) {
                    int64_t at = word_of(m->memory + node->memory, assemble(m, par, node->first, node->reads, l));
                    put_data(m, node, par, l, at < 0 ? 0 : memory[node->memory][at * lanes + l]);
                }
                mask_read(m, n, par);
            }
        }
        again = 0;
        for (int r = 0; r < rows && bridges; r++)
            if (row[r].kind == AT_HOOK && t >= row[r].on && t < row[r].off) again |= meet(m, row + r, row[r].fault);
    }
}
static void write_memories(Machine *m, int par, int lanes, u64 **memory) {
    for (int i = 0; i < m->memories; i++)
        for (int k = 0; k < m->memory[i].writes; k++) {
            Write *w = m->write + m->memory[i].first_write + k;
            for (int l = 0; l < lanes; l++) {
                u64 e = assemble(m, par, w->enable, w->enables, l);
                int64_t at = word_of(m->memory + i, assemble(m, par, w->address, w->addresses, l));
                if (!e || at < 0) continue;
                u64 *x = memory[i] + at * lanes + l;
                *x = (*x & ~e) | (assemble(m, par, w->data, w->datas, l) & e);
            }
        }
}

/* input [cycles][input_bytes]: the lanes of each input slot, one slot after the other; memory [memories] ->
 * [words][lanes]; initial [slots]; trace [lanes][cycles + 1][kept + nets] of the slots in `keep` and of what the nets at
 * `net` read, or NULL. In the end, memory and the states in trace are those after so many cycles. */
void run_plain(Machine *m, int lanes, int cycles, int inputs, const int32_t *input_slot, const char *input,
               u64 **memory, const golden_t *initial, int rows, const Row *row, golden_t *trace, int kept,
               const int32_t *keep, int nets, const Row *net) {
    for (int k = 0; k < nets; k++) hook_up(m, net + k);
    for (int s = 0; s < m->slots; s++) if (m->is_state[s]) fill(m->value[0][s], m->bytes[s], initial[s]);
    for (int t = 0; t <= cycles; t++) {
        int par = t & 1;
        for (int k = 0; k < inputs && t < cycles; k++) {
            int s = input_slot[k], size = GATE ? 64 : LANES * m->bytes[s];
            memcpy(m->value[par][s], input, size);
            input += size;
        }
        run_cycle(m, t, par, lanes, rows, row, memory, m->nodes, NULL);
        if (t < cycles) write_memories(m, par, lanes, memory);
        if (trace)
            for (int k = 0; k < kept; k++)
                for (int l = 0; l < lanes; l++)
                    trace[((int64_t)l * (cycles + 1) + t) * (kept + nets) + k] =
                        (golden_t)get(m->value[par][keep[k]], m->bytes[keep[k]], l);
        if (trace)
            for (int k = 0; k < nets; k++)
                for (int l = 0; l < lanes; l++)
                    trace[((int64_t)l * (cycles + 1) + t) * (kept + nets) + kept + k] = (golden_t)seen_value(m, net + k, l);
    }
    for (int k = 0; k < nets; k++) unhook(m, net + k);
    for (int r = 0; r < rows; r++) if (row[r].kind == AT_HOOK && row[r].off > cycles && row[r].on <= cycles) { end_fault(m, row + r, row[r].fault);
    }
}

/* -- only what differs ------------------------------------------------------------------------------------------- */

static void mark(Machine *m, int par, int slot) {
    for (int k = m->fan_first[slot]; k < m->fan_first[slot + 1]; k++)
        m->pending[par][m->fan[k] >> 6] |= 1ull << (m->fan[k] & 63);
}
static void add_dirty(Machine *m, int par, int slot) { m->dirty[par][m->dirty_count[par]++] = slot; mark(m, par, slot); }

static void emit(Machine *m, int fault, int cycle, int output, u64 value) {
    if (m->differences == m->room)
        m->difference = realloc(m->difference, sizeof(Difference) * (m->room = 2 * m->room + 1024));
    m->difference[m->differences++] = (Difference){fault, cycle, output, 0, value};
}

static void force(Machine *m, const Row *f, int lane, const golden_t *row, int cur) {
    int s = f->place;
    u64 *mask = m->mask[cur] + s * MASK;
    char *v = m->value[cur][s];
    int was = any(mask);
    if (!was && m->stamp[s] != m->serial) { fill(v, m->bytes[s], row[s]); m->stamp[s] = m->serial; }
    u64 x = (get(v, m->bytes[s], lane) & f->a) ^ f->x;
    put(v, m->bytes[s], lane, x);
    if (x != row[s]) {
        set_bit(mask, lane);
        if (!was) add_dirty(m, cur, s);
    } else clear_bit(mask, lane);
}

/* Compute all pending nodes of a cycle, and those that they make pending; how many. */
static int64_t compute(Machine *m, int cur, const golden_t *now, const golden_t *then) {
    /* in locals, because the compiler must take any store to a lane for a store to the machine */
    const int nxt = 1 - cur, blocks = (m->nodes + 63) >> 6;
    const int64_t serial = m->serial;
    const int32_t *const bytes = m->bytes, *const argument = m->argument;
    const uint8_t *const is_state = m->is_state;
    int64_t *const stamp = m->stamp;
    u64 *const pending = m->pending[cur], *const mask_now = m->mask[cur], *const mask_then = m->mask[nxt];
    char **const value_now = m->value[cur], **const value_then = m->value[nxt];
    int64_t computed = 0;
    for (int block = 0; block < blocks; block++)
        while (pending[block]) {
            int n = 64 * block + __builtin_ctzll(pending[block]);
            pending[block] &= pending[block] - 1;
            Node *node = m->node + n;
            const int32_t *slot = argument + node->first;
            const int reads = node->reads, all = reads + node->writes;
            for (int k = 0; k < reads; k++) {
                int s = slot[k];
                if (stamp[s] != serial && !any(mask_now + s * MASK)) {
                    fill(value_now[s], bytes[s], now[s]);
                    stamp[s] = serial;
                }
            }
            if (node->type == SLICE) run_slice(m, n, cur, node->clean);
            else if (node->type == GLUE) glue(m, node, cur);
            else { read_active(m, node, now, cur); mask_read(m, n, cur); }
            computed++;
            for (int k = reads; k < all; k++) {
                int s = slot[k], later = is_state[s];
                u64 *mask = (later ? mask_then : mask_now) + s * MASK;
                int was = any(mask); /* in an earlier pass of this cycle */
                int differs = later ? compare(value_then[s], bytes[s], then[s], mask)
                                    : compare(value_now[s], bytes[s], now[s], mask);
                stamp[s] = serial + later;
                if (differs | was) {
                    int to = later ? nxt : cur;
                    if (differs && !was) m->dirty[to][m->dirty_count[to]++] = s;
                    mark(m, to, s);
                }
            }
        }
    return computed;
}

typedef struct { int32_t first_row, rows, start; } Fault;

/* The fault-free values of cycle t; those of cycle t + 1 follow. */
static inline const golden_t *golden_row(Machine *m, int t) {
    if (m->fetch && (t < m->window_first || t >= m->window_last)) m->fetch(t);
    return m->window + (int64_t)(t - m->window_first) * m->slots;
}
void set_window(Machine *m, const golden_t *window, int first, int last, u64 **memory) {
    m->window = window; m->window_first = first; m->window_last = last; m->window_memory = memory;
}
/* Bring the fault-free memories from cycle `from` (-1: from anywhere) to cycle t. */
static void advance_memories(Machine *m, int from, int t) {
    if (!m->memories) return;
    golden_row(m, t);
    if (from < m->window_first) {
        from = m->window_first;
        for (int i = 0; i < m->memories; i++) memcpy(m->image[i], m->window_memory[i], sizeof(u64) * m->memory[i].words);
    }
    for (; from < t; from++) golden_writes(m, golden_row(m, from));
}

/* One pass over the cycles; faults that found no free lane are put back to the front of `queue`.
 * Returns how many are left. */
static int sweep(Machine *m, int cycles, int queued, int32_t *queue, const Fault *fault,
                 const Row *row, const int32_t *output_of, const uint8_t *strobe, int outputs, int valid,
                 int drop, int32_t *converged, uint8_t *oscillates, int64_t *computed) {
    int left = 0, next = 0, active = 0, busy_count = 0;
    int32_t lane_fault[LANES], lane_rows[LANES];
    u64 busy[MASK] = {0}, held[MASK] = {0};
    int capacity = 0;
    const Row **acting = NULL; int32_t *acting_lane = NULL;
    if (!queued) return 0;
    int t = fault[queue[0]].start;
    for (int i = 0; i < m->memories; i++) clear_memory(m, i);
    advance_memories(m, -1, t);
    for (; t < cycles; t++) {
        if (!busy_count) {
            if (next == queued) break;
            int to = fault[queue[next]].start;
            advance_memories(m, t, to);
            t = to;
            m->serial++; /* what was computed ahead for the next cycle no longer counts */
        }
        int cur = t & 1, nxt = 1 - cur, bridges = 0;
        const golden_t *now = golden_row(m, t), *then = now + m->slots;
        m->serial++;
        while (next < queued && fault[queue[next]].start <= t) {
            int f = queue[next++], lane = -1;
            for (int i = 0; i < MASK && lane < 0; i++) if (~busy[i]) lane = 64 * i + __builtin_ctzll(~busy[i]);
            if (lane < 0 || fault[f].start < t) { queue[left++] = f; continue; }
            set_bit(busy, lane); set_bit(held, lane); busy_count++;
            lane_fault[lane] = f; lane_rows[lane] = fault[f].rows;
            if (active + fault[f].rows > capacity) {
                capacity = 2 * (active + fault[f].rows);
                acting = realloc(acting, sizeof(*acting) * capacity);
                acting_lane = realloc(acting_lane, sizeof(*acting_lane) * capacity);
            }
            for (int k = 0; k < fault[f].rows; k++) {
                acting[active] = row + fault[f].first_row + k;
                acting_lane[active++] = lane;
            }
            if (!fault[f].rows) clear_bit(held, lane);
        }
        int kept = 0;
        for (int k = 0; k < active; k++) {
            const Row *f = acting[k];
            int lane = acting_lane[k];
            if (t >= f->off) {
                if (f->kind == AT_HOOK && f->on < f->off) end_fault(m, f, lane);
                if (!--lane_rows[lane]) clear_bit(held, lane);
                continue;
            }
            acting[kept] = f; acting_lane[kept++] = lane;
            if (t < f->on) continue;
            if (f->kind == AT_SLOT) force(m, f, lane, now, cur);
            else if (f->kind == AT_MEMORY) {
                u64 *w = make_row(m, f->place, f->word);
                w[lane] = (w[lane] & f->a) ^ f->x;
            } else {
                present(m, f, lane, t);
                bridges |= f->way >= BRIDGE_AND;
                m->pending[cur][f->place >> 6] |= 1ull << (f->place & 63);
            }
        }
        active = kept;
        for (int i = 0; i < m->memories; i++) if (m->touched_count[i]) {
            settle_memory(m, i);
            if (any(m->memory_mask + i * MASK))
                for (int k = m->reader_first[i]; k < m->reader_first[i + 1]; k++)
                    m->pending[cur][m->reader[k] >> 6] |= 1ull << (m->reader[k] & 63);
        }
        *computed += compute(m, cur, now, then);
        u64 seen[MASK] = {0}, restless[MASK] = {0};
        for (int pass = 1, again = bridges; again; pass++) {
            again = 0;
            for (int k = 0; k < active; k++) {
                const Row *f = acting[k];
                if (f->kind != AT_HOOK || t < f->on || !meet(m, f, acting_lane[k])) continue;
                if (pass == BRIDGE_PASSES) { set_bit(restless, acting_lane[k]); continue; }
                m->pending[cur][f->place >> 6] |= 1ull << (f->place & 63);
                again = 1;
            }
            if (again) *computed += compute(m, cur, now, then);
        }
        const u64 *flagged = valid >= 0 ? m->mask[cur] + valid * MASK : NULL;
        for (int k = 0; k < m->dirty_count[cur]; k++) {
            int s = m->dirty[cur][k], o = output_of[s], always = o >= 0 && strobe[(int64_t)t * outputs + o];
            if (o < 0 || !(always || flagged)) continue;
            u64 mask[MASK];
            for (int j = 0; j < MASK; j++) mask[j] = m->mask[cur][s * MASK + j] & (always ? ~0ull : flagged[j]);
            EACH_LANE(lane, mask) {
                emit(m, lane_fault[lane], t, o, get(m->value[cur][s], m->bytes[s], lane));
                if (drop) set_bit(seen, lane);
            }
        }
        if (m->memories) active_writes(m, now, cur);
        for (int k = 0; k < m->dirty_count[cur]; k++) memset(m->mask[cur] + m->dirty[cur][k] * MASK, 0, sizeof(u64) * MASK);
        m->dirty_count[cur] = 0;
        u64 gone[MASK], alive[MASK] = {0};
        EACH_LANE(lane, restless) { oscillates[lane_fault[lane]] = 1; set_bit(seen, lane); }
        if (any(seen)) {
            for (int k = 0; k < m->dirty_count[nxt]; k++) {
                int s = m->dirty[nxt][k];
                restore(m->value[nxt][s], m->bytes[s], then[s], seen);
                for (int j = 0; j < MASK; j++) m->mask[nxt][s * MASK + j] &= ~seen[j];
            }
            for (int i = 0; i < m->memories; i++) {
                for (int k = 0; k < m->touched_count[i]; k++)
                    EACH_LANE(lane, seen) m->row[i][m->touched[i][k]][lane] = m->image[i][m->touched[i][k]];
                if (m->touched_count[i]) settle_memory(m, i);
            }
            kept = 0;
            for (int k = 0; k < active; k++) {
                if (get_bit(seen, acting_lane[k])) {
                    if (acting[k]->kind == AT_HOOK && t >= acting[k]->on) {
                        end_fault(m, acting[k], acting_lane[k]);
                    }
                } else { acting[kept] = acting[k]; acting_lane[kept++] = acting_lane[k]; }
            }
            active = kept;
            EACH_LANE(lane, seen) clear_bit(held, lane);
        }
        for (int k = 0; k < active; k++) if (t + 1 >= acting[k]->off && lane_rows[acting_lane[k]] == 1)
            clear_bit(held, acting_lane[k]);
        for (int k = 0; k < m->dirty_count[nxt]; k++)
            for (int j = 0; j < MASK; j++) alive[j] |= m->mask[nxt][m->dirty[nxt][k] * MASK + j];
        for (int i = 0; i < m->memories; i++)
            for (int j = 0; j < MASK; j++) alive[j] |= m->memory_mask[i * MASK + j];
        for (int j = 0; j < MASK; j++) gone[j] = busy[j] & ~alive[j] & ~held[j];
        if (any(gone)) {
            kept = 0;
            for (int k = 0; k < active; k++) {
                if (!get_bit(gone, acting_lane[k])) { acting[kept] = acting[k]; acting_lane[kept++] = acting_lane[k]; continue; }
                if (acting[k]->kind == AT_HOOK) { end_fault(m, acting[k], acting_lane[k]); }
            }
            active = kept;
            EACH_LANE(lane, gone) {
                converged[lane_fault[lane]] = get_bit(seen, lane) ? -2 - t : t + 1;
                busy_count--;
            }
            for (int j = 0; j < MASK; j++) busy[j] &= ~gone[j];
        }
    }
    for (int k = 0; k < active; k++)
        if (acting[k]->kind == AT_HOOK && acting[k]->on < cycles) {
            end_fault(m, acting[k], acting_lane[k]);
        }
    /* alive to the end: does any state still differ? */
    u64 alive[MASK] = {0};
    int last = cycles & 1;
    for (int k = 0; k < m->dirty_count[last]; k++)
        for (int j = 0; j < MASK; j++) alive[j] |= m->mask[last][m->dirty[last][k] * MASK + j];
    for (int i = 0; i < m->memories; i++)
        for (int j = 0; j < MASK; j++) alive[j] |= m->memory_mask[i * MASK + j];
    EACH_LANE(lane, busy) converged[lane_fault[lane]] = get_bit(alive, lane) ? -1 : cycles;
    for (int p = 0; p < 2; p++) {
        for (int k = 0; k < m->dirty_count[p]; k++) memset(m->mask[p] + m->dirty[p][k] * MASK, 0, sizeof(u64) * MASK);
        m->dirty_count[p] = 0;
        memset(m->pending[p], 0, sizeof(u64) * (m->nodes / 64 + 1));
    }
    m->serial += 2;
    free(acting); free(acting_lane);
    return left + (memmove(queue + left, queue + next, sizeof(int32_t) * (queued - next)), queued - next);
}

/* trace [cycles + 1][slots], or NULL where `fetch` sets windows of it; faults in groups of `group`, each sorted by start; converged [faults]: the cycle from
 * which a machine was fault-free again, -1 when it never was, -2 - t when dropped at t; oscillates [faults]: it was
 * dropped because its bridges did not settle. */
int64_t run_active(Machine *m, const golden_t *trace, int cycles, int faults, const Fault *fault, const Row *row,
                   int group, const int32_t *output_of, const uint8_t *strobe, int outputs, int valid, int drop,
                   u64 **memory, int32_t *converged, uint8_t *oscillates, int64_t *computed, void (*fetch)(int)) {
    set_window(m, trace, 0, trace ? cycles : 0, memory);
    m->fetch = fetch;
    m->differences = 0;
    int32_t *queue = malloc(sizeof(int32_t) * (group + 1));
    for (int first = 0; first < faults; first += group) {
        int count = faults - first < group ? faults - first : group;
        for (int k = 0; k < count; k++) { queue[k] = first + k; converged[first + k] = cycles; }
        while (count)
            count = sweep(m, cycles, count, queue, fault, row, output_of, strobe, outputs, valid, drop,
                          converged, oscillates, computed);
    }
    free(queue);
    return m->differences;
}
const Difference *differences(Machine *m) { return m->difference; }
