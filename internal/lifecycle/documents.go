package lifecycle

// documents are what the phases of a build hand over to each other, by path,
// where one process carries out more than one of them: kiln's own, and the
// creator. Between two phases foreign code runs, which the files may belong to;
// what a phase has once read or written is what it was.
//
// Phases that are processes of their own have the files only.
type documents map[path]document

// document is one that was there, or the reason why it was not.
type document struct {
	body []byte
	err  error
}

// document reads a document as this build knows it.
func (h Host) document(p path) ([]byte, error) {
	if h.Places != nil {
		if d, known := h.Places.documents[p]; known {
			return d.body, d.err
		}
	}
	b, err := h.read(p)
	h.keep(p, b, err)
	return b, err
}

// keep remembers a document for the phases that follow.
func (h Host) keep(p path, body []byte, err error) {
	if h.Places == nil {
		return
	}
	if h.Places.documents == nil {
		h.Places.documents = documents{}
	}
	h.Places.documents[p] = document{body, err}
}

// forget has a document read again: somebody who may has written it.
func (h Host) forget(p path) {
	if h.Places != nil {
		delete(h.Places.documents, p)
	}
}
