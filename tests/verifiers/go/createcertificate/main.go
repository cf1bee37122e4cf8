// Command createcertificate is a client of the Istio CA API that shares nothing with the server: another language,
// another gRPC, and only the fields that the API publishes. It makes one call and prints one JSON document; its exit
// code is 0 whatever the server answered.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	_ "google.golang.org/genproto/googleapis/rpc/errdetails" // ErrorInfo and RetryInfo in the registry
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

type options struct {
	ca, caBundle, tokenFile, cert, key, csr, keyOut string
	ttl                                             time.Duration
}

type answer struct {
	CertChain []string          `json:"cert_chain"`
	Code      string            `json:"code"`
	Message   string            `json:"message"`
	Details   []json.RawMessage `json:"details"`
	Trailers  metadata.MD       `json:"trailers"`
}

func main() {
	var o options
	flag.StringVar(&o.ca, "ca", "", "HOST:PORT of the CA")
	flag.StringVar(&o.caBundle, "ca-bundle", "", "PEM file with the roots of the CA's serving certificate")
	flag.StringVar(&o.tokenFile, "token-file", "", "file with the bearer token to send")
	flag.StringVar(&o.cert, "cert", "", "PEM file with the client certificate and its chain")
	flag.StringVar(&o.key, "key", "", "PEM file with the key of --cert")
	flag.StringVar(&o.csr, "csr", "", "file to send as the CSR; without it a P-256 key and a CSR without names are made")
	flag.StringVar(&o.keyOut, "key-out", "", "where the made key goes; without it the key is dropped")
	flag.DurationVar(&o.ttl, "ttl", 0, "validity to ask for; 0 leaves it to the server")
	flag.Parse()
	result, err := run(o)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(o options) (*answer, error) {
	csr, err := o.request()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := o.tls()
	if err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient(o.ca, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if ctx, err = o.authorize(ctx); err != nil {
		return nil, err
	}
	return call(ctx, connection, csr, o.ttl)
}

func call(ctx context.Context, connection *grpc.ClientConn, csr string, ttl time.Duration) (*answer, error) {
	requestType, responseType, err := messages()
	if err != nil {
		return nil, err
	}
	request, response := dynamicpb.NewMessage(requestType), dynamicpb.NewMessage(responseType)
	fields := requestType.Fields()
	request.Set(fields.ByName("csr"), protoreflect.ValueOfString(csr))
	request.Set(fields.ByName("validity_duration"), protoreflect.ValueOfInt64(int64(ttl/time.Second)))
	result := answer{CertChain: []string{}, Details: []json.RawMessage{}}
	problem := connection.Invoke(ctx, method, request, response, grpc.Trailer(&result.Trailers))
	chain := response.Get(responseType.Fields().ByName("cert_chain")).List()
	for i := range chain.Len() {
		result.CertChain = append(result.CertChain, chain.Get(i).String())
	}
	return &result, result.explain(status.Convert(problem))
}

func (a *answer) explain(outcome *status.Status) error {
	a.Code, a.Message = outcome.Code().String(), outcome.Message()
	for _, detail := range outcome.Proto().GetDetails() {
		text, err := protojson.Marshal(detail)
		if err != nil {
			return err
		}
		a.Details = append(a.Details, text)
	}
	return nil
}

func (o options) tls() (*tls.Config, error) {
	roots, err := os.ReadFile(o.caBundle)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("%s: no certificate", o.caBundle)
	}
	if o.cert == "" {
		return config, nil
	}
	own, err := tls.LoadX509KeyPair(o.cert, o.key)
	config.Certificates = []tls.Certificate{own}
	return config, err
}

func (o options) authorize(ctx context.Context) (context.Context, error) {
	if o.tokenFile == "" {
		return ctx, nil
	}
	token, err := os.ReadFile(o.tokenFile)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token))), err
}

func (o options) request() (string, error) {
	if o.csr != "" {
		csr, err := os.ReadFile(o.csr)
		return string(csr), err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return "", err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	return string(text), o.keep(key)
}

func (o options) keep(key *ecdsa.PrivateKey) error {
	if o.keyOut == "" {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(o.keyOut, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
