// Package debian makes root file systems, and directory prefixes, out of
// Debian packages: no Docker, no dpkg, no apt, no root, and no maintainer script
// is ever run.
//
//	apt configuration -> Sources -> InRelease (signed) -> Packages -> Resolve -> Lock
//	Lock -> .debs (parallel, verified) -> one stream -> layer tars    (Build)
//	                                                 -> a directory   (Unpack)
//
// Every byte is bound by hash to a Release file that one of the archive's keys
// signed. The Lock names each package by version and SHA-256; from it the same
// bytes come again, without any index, for as long as a mirror or the caller's
// Blobs still have the .debs.
//
// What maintainer scripts would have done is done here as data (Build says
// what); packages whose scripts do something that is not, are reported in
// Result.Unemulated.
package debian
