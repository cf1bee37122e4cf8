module citadel-py.test/peers/istio

go 1.26.0
