package main

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/internal/sandbox"
	"github.com/kilnbuild/kiln/internal/store"
)

// What the shell offers for flags with few values.
var (
	networks = []string{sandbox.HostNetwork, sandbox.NoNetwork}
	tiers    = []string{string(sandbox.Tier1), string(sandbox.Tier1S), string(sandbox.Tier2), string(sandbox.Tier3)}
)

// complete offers the values that a flag can have.
func complete(c *cobra.Command, flag string, values ...string) {
	// It fails for a flag that does not exist: TestCompletion sees that.
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// completeImage offers the images of the store for the first argument.
func (k *kiln) completeImage(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return k.completeImages(c, args, typed)
}

// completeImages offers the images of the store that were not named yet. A
// store that is not there is not made for it, and errors offer nothing: nobody
// reads them behind a Tab.
func (k *kiln) completeImages(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	dir, err := k.storeDir(c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	st, err := store.Open(c.Context(), dir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer st.Close()
	refs, err := st.Refs(c.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, r := range refs {
		name := strings.TrimSuffix(r.Name, ":latest")
		if !ownImage(r.Name) && strings.HasPrefix(name, typed) && !slices.Contains(args, name) {
			names = append(names, name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
