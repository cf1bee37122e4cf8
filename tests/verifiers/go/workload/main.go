// Command workload follows X.509-SVIDs with go-spiffe, as any program of a mesh does, and verifies each with it.
// One line of JSON per update on stdout, what goes wrong meanwhile on stderr. The socket is $SPIFFE_ENDPOINT_SOCKET.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

type update struct {
	ID       string   `json:"spiffe_id"`
	Serial   string   `json:"serial"`
	Verified string   `json:"verified"`
	Bundles  []string `json:"bundles"`
}

// follower ends the watch after some updates.
type follower struct {
	left int
	end  context.CancelFunc
}

func main() {
	count := flag.Int("count", 1, "updates to follow")
	limit := flag.Duration("limit", 60*time.Second, "how long that may take")
	flag.Parse()
	if err := run(*count, *limit); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(count int, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	following, end := context.WithCancel(ctx)
	watched := &follower{left: count, end: end}
	if err := client.WatchX509Context(following, watched); watched.left > 0 {
		return fmt.Errorf("%d updates are missing: %w", watched.left, err)
	}
	return others(ctx, client)
}

// others calls what is left of the API.
func others(ctx context.Context, client *workloadapi.Client) error {
	bundles, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	_, err = client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "peer"})
	var refused interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &refused) {
		return fmt.Errorf("FetchJWTSVID was not refused: %w", err)
	}
	return tell(map[string]any{"bundles": names(bundles), "jwt": refused.GRPCStatus().Code().String()})
}

func (f *follower) OnX509ContextUpdate(held *workloadapi.X509Context) {
	if f.left == 0 {
		return
	}
	svid := held.DefaultSVID()
	serial := fmt.Sprintf("%x", svid.Certificates[0].SerialNumber)
	seen := update{ID: svid.ID.String(), Serial: serial, Bundles: names(held.Bundles)}
	if id, _, err := x509svid.Verify(svid.Certificates, held.Bundles); err != nil {
		seen.Verified = err.Error()
	} else {
		seen.Verified = id.String()
	}
	if err := tell(seen); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if f.left--; f.left == 0 {
		f.end()
	}
}

func (f *follower) OnX509ContextWatchError(err error) {
	fmt.Fprintln(os.Stderr, status.Code(err), err)
}

func names(bundles *x509bundle.Set) []string {
	found := []string{}
	for _, bundle := range bundles.Bundles() {
		found = append(found, bundle.TrustDomain().Name())
	}
	slices.Sort(found)
	return found
}

func tell(what any) error {
	return json.NewEncoder(os.Stdout).Encode(what)
}
