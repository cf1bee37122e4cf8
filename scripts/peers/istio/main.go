// Istio's CA server as istiod wires it, without Kubernetes: its own pki/ca, its own CreateCertificate, its own check of
// JSON Web Tokens, its own gRPC options and its own kind of serving certificate. Like istiod it keeps no record.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/reflection"

	"istio.io/api/security/v1beta1"
	istiogrpc "istio.io/istio/pilot/pkg/grpc"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/mesh/meshwatcher"
	"istio.io/istio/pkg/keepalive"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/pki/ca"
	"istio.io/istio/security/pkg/pki/util"
	caserver "istio.io/istio/security/pkg/server/ca"
	"istio.io/istio/security/pkg/server/ca/authenticate"
)

const (
	year = 365 * 24 * time.Hour
	day  = 24 * time.Hour
)

type options struct {
	listen, keys, jwks, issuer, audience, trustDomain, directory string
}

func main() {
	var given options
	flag.StringVar(&given.listen, "listen", "", "HOST:PORT of loopback")
	flag.StringVar(&given.keys, "keys", "rsa2048", "kind of the authority's key: rsa2048 or p256")
	flag.StringVar(&given.jwks, "jwks", "", "file with the keys of the token issuer")
	flag.StringVar(&given.issuer, "issuer", "", "issuer of tokens")
	flag.StringVar(&given.audience, "audience", "istio-ca", "audience of tokens")
	flag.StringVar(&given.trustDomain, "trust-domain", "", "trust domain")
	flag.StringVar(&given.directory, "dir", "", "where ca.crt is written")
	flag.Parse()
	if err := run(given); err != nil {
		log.Fatal(err)
	}
}

func run(given options) error {
	authority, err := newAuthority(given)
	if err != nil {
		return err
	}
	root := authority.GetCAKeyCertBundle().GetRootCertPem()
	jwt, err := tokens(given)
	if err != nil {
		return err
	}
	service, err := caserver.New(authority, day, []security.Authenticator{&authenticate.ClientCertAuthenticator{}, jwt}, nil)
	if err != nil {
		return err
	}
	config, err := serving(authority, root)
	if err != nil {
		return err
	}
	offered := istiogrpc.ServerOptions(keepalive.DefaultOption(), func(int64) {}, grpcprom.UnaryServerInterceptor)
	server := grpc.NewServer(append(offered, grpc.Creds(credentials.NewTLS(config)))...)
	service.Register(server)
	reflection.Register(server)
	listener, err := net.Listen("tcp", given.listen)
	if err != nil {
		return err
	}
	// Written last: whoever waits for it finds everything else in place.
	if err := os.WriteFile(filepath.Join(given.directory, "ca.crt"), root, 0o600); err != nil {
		return err
	}
	return server.Serve(listener)
}

func newAuthority(given options) (*ca.IstioCA, error) {
	wanted := util.CertOptions{TTL: 10 * year, Org: given.trustDomain, IsCA: true, IsSelfSigned: true, IsDualUse: true}
	switch given.keys {
	case "rsa2048": // istiod's default
		wanted.RSAKeySize = 2048
	case "p256":
		wanted.ECSigAlg, wanted.ECCCurve = util.EcdsaSigAlg, util.P256Curve
	default:
		return nil, fmt.Errorf("unknown kind of key %q", given.keys)
	}
	certificate, key, err := util.GenCertKeyFromOptions(wanted)
	if err != nil {
		return nil, err
	}
	bundle, err := util.NewVerifiedKeyCertBundleFromPem(certificate, key, nil, certificate, nil)
	if err != nil {
		return nil, err
	}
	return ca.NewIstioCA(&ca.IstioCAOptions{
		DefaultCertTTL: day, MaxCertTTL: 90 * day, CARSAKeySize: 2048, KeyCertBundle: bundle,
	})
}

// tokens is how istiod verifies tokens outside Kubernetes. Its library fetches the keys once and keeps them.
func tokens(given options) (security.Authenticator, error) {
	document, err := os.ReadFile(given.jwks)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		answer := func(reply http.ResponseWriter, _ *http.Request) { _, _ = reply.Write(document) }
		log.Fatal(http.Serve(listener, http.HandlerFunc(answer)))
	}()
	rule := &v1beta1.JWTRule{
		Issuer:    given.issuer,
		Audiences: []string{given.audience},
		JwksUri:   "http://" + listener.Addr().String(),
	}
	configuration := mesh.DefaultMeshConfig()
	configuration.TrustDomain = given.trustDomain
	return authenticate.NewJwtAuthenticator(rule, meshwatcher.NewTestWatcher(configuration))
}

// serving is istiod's own certificate: signed by its own authority, with a key of the same kind.
func serving(authority *ca.IstioCA, root []byte) (*tls.Config, error) {
	chain, key, err := authority.GenKeyCert([]string{"localhost", "127.0.0.1"}, day, false)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair([]byte(strings.TrimSpace(string(chain))), key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    roots,
		MinVersion:   tls.VersionTLS12,
	}, nil
}
