package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/platform"
)

func (k *kiln) sbomCommand() *cobra.Command {
	c := group("sbom", "Software bills of materials of images")
	c.AddCommand(k.sbomDownloadCommand())
	return c
}

func (k *kiln) sbomDownloadCommand() *cobra.Command {
	var dir string
	var remote, asJSON bool
	var insecure []string
	c := &cobra.Command{
		Use:   "download IMAGE",
		Short: "Write the software bills of materials of an image to files",
		Long: `Write the software bills of materials of an image to files.

They are what its buildpacks said of what they put into it, in the tree that
they have in the image: layers/sbom/launch/<buildpack>/<layer>/sbom.cdx.json.
The image is in the store, a registry, or a file (oci:DIR, oci-archive:FILE,
docker-archive:FILE); only the layer with the files is read.`,
		Example: `  kiln sbom download my-app
  kiln sbom download registry.example.com/team/my-app --remote --output-dir ./sbom`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: k.completeImage,
		RunE: func(c *cobra.Command, args []string) error {
			return k.with(c, sinkFlags{quiet: true}, func(ctx context.Context, p *platform.Platform) error {
				files, err := p.DownloadSBOM(ctx, args[0], remote, insecure, dir)
				if err != nil {
					return err
				}
				for i, f := range files {
					files[i] = filepath.Join(dir, filepath.FromSlash(f))
				}
				if asJSON {
					return k.printJSON(struct {
						Image string   `json:"image"`
						Files []string `json:"files"`
					}{args[0], files})
				}
				for _, f := range files {
					k.printf("%s\n", f)
				}
				return nil
			})
		},
	}
	c.Flags().StringVarP(&dir, "output-dir", "o", ".", "`directory` to write to")
	c.Flags().BoolVar(&remote, "remote", false, "take the image from its registry, whatever the store has")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringArrayVar(&insecure, "insecure-registry", nil, "`registry` to speak plain HTTP with")
	return c
}
