// Command verify asks crypto/x509 whether a chain leads to a root. Exit codes: 0 yes, 1 no (the reason is on stdout), 2 usage.
package main

import (
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
)

var purposes = map[string]x509.ExtKeyUsage{
	"client": x509.ExtKeyUsageClientAuth,
	"server": x509.ExtKeyUsageServerAuth,
}

func main() {
	root := flag.String("root", "", "PEM file with the roots")
	chain := flag.String("chain", "", "PEM file with the leaf first, then intermediates")
	purpose := flag.String("purpose", "", "client or server")
	flag.Parse()
	usage, known := purposes[*purpose]
	if !known || *root == "" || *chain == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := verify(*root, *chain, usage); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func verify(rootFile, chainFile string, usage x509.ExtKeyUsage) error {
	roots, err := load(rootFile)
	if err != nil {
		return err
	}
	chain, err := load(chainFile)
	if err != nil {
		return err
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots:         pool(roots),
		Intermediates: pool(chain[1:]),
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	return err
}

func load(file string) ([]*x509.Certificate, error) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var found []*x509.Certificate
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		found = append(found, certificate)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: no certificate", file)
	}
	return found, nil
}

func pool(certificates []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return pool
}
