package spec

// Version is kiln's and its lifecycle's version. The Makefile sets it from the
// file VERSION; a program built without it is a development build.
var Version = "0.0.0-dev"
