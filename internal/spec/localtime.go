package spec

import (
	"time"

	"github.com/pelletier/go-toml/v2"
)

// localTime is a TOML date or time without an offset that a buildpack wrote.
// As TOML it is what it was; in a label it is what the reference's decoder
// makes of it, a time in UTC.
type localTime struct {
	text string
	utc  time.Time
}

// MarshalTOML is for BurntSushi's encoder.
func (l localTime) MarshalTOML() ([]byte, error) { return []byte(l.text), nil }

// MarshalText is for JSON.
func (l localTime) MarshalText() ([]byte, error) { return l.utc.MarshalText() }

// localTimes puts localTime in the place of the decoder's types, in what a
// document remembers for somebody.
func localTimes(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, element := range v {
			v[key] = localTimes(element)
		}
	case []any:
		for i, element := range v {
			v[i] = localTimes(element)
		}
	case toml.LocalDate:
		return localTime{v.String(), v.AsTime(time.UTC)}
	case toml.LocalDateTime:
		return localTime{v.String(), v.AsTime(time.UTC)}
	case toml.LocalTime:
		return localTime{v.String(), time.Date(0, 1, 1, v.Hour, v.Minute, v.Second, v.Nanosecond, time.UTC)}
	}
	return v
}
