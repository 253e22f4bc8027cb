// As much of msgpack as the channel between a plugin and its sidecar needs.
#pragma once
#include <string.h>

typedef unsigned char Byte;

typedef struct { Byte data[8192]; int n; } Message;

static void raw(Message *m, const void *data, int n) { memcpy(m->data + m->n, data, n), m->n += n; }
static void byte(Message *m, int value) { m->data[m->n++] = value; }

static void text(Message *m, const char *s) {
  int n = strlen(s);
  if (n < 32) byte(m, 0xa0 | n);
  else byte(m, 0xd9), byte(m, n);
  raw(m, s, n);
}

static void number(Message *m, unsigned long long value) {
  if (value < 128) { byte(m, value); return; }
  byte(m, 0xcf);
  for (int shift = 56; shift >= 0; shift -= 8) byte(m, value >> shift & 255);
}

static void named(Message *m, const char *name, unsigned long long value) { text(m, name), number(m, value); }
static void named_text(Message *m, const char *name, const char *value) { text(m, name), text(m, value); }

// Bytes of the msgpack value at p: strings, integers, nil, booleans.
static int value_bytes(const Byte *p) {
  static const int sizes[] = {2, 3, 5, 9};
  if (*p < 0x80 || *p >= 0xe0) return 1;
  if ((*p & 0xe0) == 0xa0) return 1 + (*p & 31);
  if (*p >= 0xcc && *p <= 0xcf) return sizes[*p - 0xcc];
  if (*p >= 0xd0 && *p <= 0xd3) return sizes[*p - 0xd0];
  if (*p == 0xd9) return 2 + p[1];
  if (*p == 0xda) return 3 + (p[1] << 8 | p[2]);
  return 1;
}

static void copy(Message *m, const Byte **at, int values) {
  for (; values; values--) { int n = value_bytes(*at); raw(m, *at, n); *at += n; }
}

static void skip(const Byte **at, int values) { for (; values; values--) *at += value_bytes(*at); }
