package kit

import (
	"bytes"
	"cmp"
	"encoding/json"

	cdx "github.com/CycloneDX/cyclonedx-go"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// toolName is who wrote a BOM.
const toolName = "kiln-buildpacks-kit"

// CycloneDX is the BOM as CycloneDX JSON. Version 1.5 is the newest that the
// common scanners all read. Serial number and time, both optional, are left out.
func (b BOM) CycloneDX() ([]byte, error) {
	doc := cdx.NewBOM()
	doc.Metadata = &cdx.Metadata{
		Component: &cdx.Component{Type: cdx.ComponentTypeApplication, BOMRef: "subject", Name: b.Subject},
	}
	components := []cdx.Component{}
	for _, p := range b.sorted() {
		c := cdx.Component{
			Type: cdx.ComponentTypeLibrary, BOMRef: p.PURL() + "#" + p.id(),
			Name: p.Name, Version: p.Version, PackageURL: p.PURL(),
		}
		switch {
		case p.License != "":
			c.Licenses = &cdx.Licenses{{Expression: p.License}}
		case p.LicenseText != "":
			c.Licenses = &cdx.Licenses{{License: &cdx.License{Name: p.LicenseText}}}
		}
		if p.SHA256 != "" {
			c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: p.SHA256}}
		}
		if p.Location != "" {
			c.Evidence = &cdx.Evidence{Occurrences: &[]cdx.EvidenceOccurrence{{Location: p.Location}}}
		}
		components = append(components, c)
	}
	doc.Components = &components
	var out bytes.Buffer
	err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(doc, cdx.SpecVersion1_5)
	return out.Bytes(), err
}

// spdxCreated is the creation time that SPDX insists on: that of every file in
// an image's layers.
const spdxCreated = "1980-01-01T00:00:01Z"

// SPDX is the BOM as SPDX 2.3 JSON.
func (b BOM) SPDX() ([]byte, error) {
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      b.Subject,
		DocumentNamespace: "urn:sha256:" + b.digest(),
		CreationInfo: &spdx.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: toolName}},
			Created:  spdxCreated,
		},
	}
	for _, p := range b.sorted() {
		id := common.ElementID("Package-" + p.id())
		pkg := &spdx.Package{
			PackageName: p.Name, PackageSPDXIdentifier: id, PackageVersion: p.Version,
			PackageDownloadLocation: "NOASSERTION",
			PackageLicenseConcluded: "NOASSERTION", PackageLicenseDeclared: cmp.Or(p.License, "NOASSERTION"),
			PackageLicenseComments: p.LicenseText, PackageCopyrightText: "NOASSERTION",
			PackageSourceInfo: p.Location,
			PackageExternalReferences: []*spdx.PackageExternalReference{{
				Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: p.PURL(),
			}},
		}
		if p.SHA256 != "" {
			pkg.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: p.SHA256}}
		}
		doc.Packages = append(doc.Packages, pkg)
		doc.Relationships = append(doc.Relationships, &spdx.Relationship{
			RefA: common.MakeDocElementID("", "DOCUMENT"), RefB: common.MakeDocElementID("", string(id)),
			Relationship: common.TypeRelationshipDescribe,
		})
	}
	var out bytes.Buffer
	err := spdxjson.Write(doc, &out, spdxjson.Indent("  "), spdxjson.EscapeHTML(false))
	return out.Bytes(), err
}

// The types below are those parts of Syft's JSON (schema 16) that its readers
// need.
type syftDocument struct {
	Artifacts             []syftArtifact   `json:"artifacts"`
	ArtifactRelationships []struct{}       `json:"artifactRelationships"`
	Source                syftSource       `json:"source"`
	Distro                struct{}         `json:"distro"`
	Descriptor            syftDescriptor   `json:"descriptor"`
	Schema                syftSchemaRecord `json:"schema"`
}

type syftArtifact struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Version   string         `json:"version"`
	Type      string         `json:"type"`
	FoundBy   string         `json:"foundBy"`
	Locations []syftLocation `json:"locations"`
	Licenses  []syftLicense  `json:"licenses"`
	Language  string         `json:"language"`
	CPEs      []struct{}     `json:"cpes"`
	PURL      string         `json:"purl"`
}

type syftLocation struct {
	Path       string `json:"path"`
	AccessPath string `json:"accessPath"`
}

type syftLicense struct {
	Value          string         `json:"value"`
	SPDXExpression string         `json:"spdxExpression"`
	Type           string         `json:"type"`
	URLs           []string       `json:"urls"`
	Locations      []syftLocation `json:"locations"`
}

type syftSource struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Version  string            `json:"version"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata"`
}

type syftDescriptor struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

type syftSchemaRecord struct {
	Version string `json:"version"`
	URL     string `json:"url"`
}

// syftKinds maps the type of a package URL to Syft's package type and language.
var syftKinds = map[string][2]string{"deb": {"deb", ""}, "pypi": {"python", "python"}, "golang": {"go-module", "go"}, "npm": {"npm", "javascript"}}

// Syft is the BOM as Syft JSON.
func (b BOM) Syft() ([]byte, error) {
	doc := syftDocument{
		Artifacts: []syftArtifact{}, ArtifactRelationships: []struct{}{},
		Source:     syftSource{ID: b.digest(), Name: b.Subject, Type: "directory", Metadata: map[string]string{"path": "."}},
		Descriptor: syftDescriptor{Name: toolName},
		Schema: syftSchemaRecord{
			Version: "16.0.0",
			URL:     "https://raw.githubusercontent.com/anchore/syft/main/schema/json/schema-16.0.0.json",
		},
	}
	for _, p := range b.sorted() {
		kind, ok := syftKinds[p.Type]
		if !ok {
			kind = [2]string{"binary", ""}
		}
		a := syftArtifact{
			ID: p.id(), Name: p.Name, Version: p.Version, Type: kind[0], Language: kind[1], FoundBy: toolName,
			Locations: []syftLocation{}, Licenses: []syftLicense{}, CPEs: []struct{}{}, PURL: p.PURL(),
		}
		if p.Location != "" {
			a.Locations = append(a.Locations, syftLocation{Path: p.Location, AccessPath: p.Location})
		}
		if words := p.licenseWords(); words != "" {
			a.Licenses = append(a.Licenses, syftLicense{Value: words, SPDXExpression: p.License, Type: "declared", URLs: []string{}, Locations: []syftLocation{}})
		}
		doc.Artifacts = append(doc.Artifacts, a)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(doc)
	return out.Bytes(), err
}
