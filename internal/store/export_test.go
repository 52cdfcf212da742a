package store

// SetBoot makes s believe that the machine was started anew.
func SetBoot(s *Store, id string) { s.boot = func() string { return id } }
