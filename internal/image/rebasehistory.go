package image

import (
	"encoding/json"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnbuild/kiln/internal/spec"
)

// history puts base's entries in the place of those of the layers that go. An
// image without a history gets none.
func (r rebase) history(o *spec.Object) error {
	if len(r.app.config.History) == 0 {
		return nil
	}
	own, err := r.ownHistory(o)
	if err != nil {
		return err
	}
	below, err := r.baseHistory()
	if err != nil {
		return err
	}
	o.Put("history", spec.List(append(below, own...)))
	return nil
}

// ownHistory is the entries of the layers that stay. Entries without a layer
// that follow the last one that goes are taken for that base's: most bases end
// with some.
func (r rebase) ownHistory(o *spec.Object) ([]json.RawMessage, error) {
	cf := r.app.config
	if !historyFits(cf) {
		return encodeHistory(make([]v1.History, len(cf.RootFS.DiffIDs)-r.n))
	}
	var raw []json.RawMessage
	if err := o.Get("history", &raw); err != nil {
		return nil, err
	}
	if len(raw) != len(cf.History) {
		return nil, invalid("it has a key in more than one spelling")
	}
	layers := 0
	for i, h := range cf.History {
		if h.EmptyLayer {
			continue
		}
		if layers == r.n {
			return raw[i:], nil
		}
		layers++
	}
	return nil, nil
}

// baseHistory is base's entries in the form of the app's.
func (r rebase) baseHistory() ([]json.RawMessage, error) {
	cf := r.base.config
	history := cf.History
	fits := historyFits(cf)
	if !fits {
		history = make([]v1.History, len(cf.RootFS.DiffIDs))
	}
	plain, blank := formOf(r.app.config)
	if !plain {
		if !fits {
			return encodeHistory(history)
		}
		o, err := spec.ParseObject(r.base.rawConfig)
		if err != nil {
			return nil, err
		}
		var raw []json.RawMessage
		return raw, o.Get("history", &raw)
	}
	var list []v1.History
	for _, h := range history {
		if h.EmptyLayer {
			continue
		}
		if blank {
			h = v1.History{}
		}
		h.Created = r.app.config.Created
		list = append(list, h)
	}
	return encodeHistory(list)
}

// formOf tells how an exporter has written a history. plain: one entry for each
// layer, all of the image's time. blank: and there is nothing else in them.
func formOf(cf *v1.ConfigFile) (plain, blank bool) {
	if !historyFits(cf) {
		return false, false
	}
	blank = true
	for _, h := range cf.History {
		if h.EmptyLayer || !h.Created.Equal(cf.Created.Time) {
			return false, false
		}
		blank = blank && h.CreatedBy == "" && h.Author == "" && h.Comment == ""
	}
	return true, blank
}

func encodeHistory(list []v1.History) ([]json.RawMessage, error) {
	var raw []json.RawMessage
	for _, h := range list {
		b, err := json.Marshal(h)
		if err != nil {
			return nil, err
		}
		raw = append(raw, b)
	}
	return raw, nil
}
