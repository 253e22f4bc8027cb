// Package sse reads server-sent events, the form in which engines stream answers.
package sse

import (
	"bufio"
	"io"
	"strings"
)

// maxLine bounds a line: an event with a long tool call is a single one.
const maxLine = 16 << 20

// Read calls each for the data of every event until the stream or `[DONE]` ends it. Comments, which engines send while
// a call waits, are passed over. It returns the first error of the reader or of each.
func Read(from io.Reader, each func(data string) error) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	var data []string
	for lines.Scan() {
		line := lines.Text()
		if rest, found := strings.CutPrefix(line, "data:"); found {
			data = append(data, strings.TrimPrefix(rest, " "))
			continue
		}
		if line != "" || len(data) == 0 {
			continue
		}
		event := strings.Join(data, "\n")
		data = data[:0]
		if event == "[DONE]" {
			return nil
		}
		if err := each(event); err != nil {
			return err
		}
	}
	return lines.Err()
}
