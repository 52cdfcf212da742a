package cache

import (
	"testing"
	"time"
)

// Impatient makes waiting for a lock end after d.
func Impatient(t *testing.T, d time.Duration) {
	old := patience
	patience = d
	t.Cleanup(func() { patience = old })
}

// WithoutExchange makes a file system that cannot swap two names.
func WithoutExchange(t *testing.T, err error) {
	old := exchange
	exchange = func(int, string, string) error { return err }
	t.Cleanup(func() { exchange = old })
}
