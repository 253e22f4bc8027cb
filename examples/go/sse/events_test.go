package sse

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func read(t *testing.T, text string) []string {
	t.Helper()
	var events []string
	err := Read(iotest.OneByteReader(strings.NewReader(text)), func(data string) error {
		events = append(events, data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func TestEventsAreReadHoweverTheirBytesArrive(t *testing.T) {
	for text, want := range map[string][]string{
		"data: a\n\ndata: b\n\ndata: [DONE]\n\ndata: c\n\n": {"a", "b"},
		": waiting\n\ndata:a\r\n\r\n":                       {"a"},
		"event: x\ndata: 1\ndata: 2\n\n":                    {"1\n2"},
		"data: cut off":                                     nil,
	} {
		if got := read(t, text); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestAnErrorEndsTheReading(t *testing.T) {
	stop := errors.New("stop")
	err := Read(strings.NewReader("data: a\n\ndata: b\n\n"), func(string) error { return stop })
	if !errors.Is(err, stop) {
		t.Error(err)
	}
	if err := Read(iotest.ErrReader(stop), func(string) error { return nil }); !errors.Is(err, stop) {
		t.Error(err)
	}
}
