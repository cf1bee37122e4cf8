package main

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	_ "google.golang.org/protobuf/types/known/structpb" // google.protobuf.Struct in the registry
)

const method = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// messages are what any agent knows of the API: its public fields and their numbers.
func messages() (request, response protoreflect.MessageDescriptor, err error) {
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name:       proto.String("public.proto"),
		Package:    proto.String("istio.v1.auth"),
		Syntax:     proto.String("proto3"),
		Dependency: []string{"google/protobuf/struct.proto"},
		MessageType: []*descriptorpb.DescriptorProto{
			{
				Name: proto.String("IstioCertificateRequest"),
				Field: []*descriptorpb.FieldDescriptorProto{
					field("csr", 1, descriptorpb.FieldDescriptorProto_TYPE_STRING),
					field("validity_duration", 3, descriptorpb.FieldDescriptorProto_TYPE_INT64),
					message("metadata", 4, ".google.protobuf.Struct"),
				},
			},
			{
				Name:  proto.String("IstioCertificateResponse"),
				Field: []*descriptorpb.FieldDescriptorProto{repeated("cert_chain", 1)},
			},
		},
	}, protoregistry.GlobalFiles)
	if err != nil {
		return nil, nil, err
	}
	return file.Messages().Get(0), file.Messages().Get(1), nil
}

func field(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type) *descriptorpb.FieldDescriptorProto {
	return &descriptorpb.FieldDescriptorProto{
		Name:   proto.String(name),
		Number: proto.Int32(number),
		Type:   kind.Enum(),
		Label:  descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
}

func message(name string, number int32, kind string) *descriptorpb.FieldDescriptorProto {
	descriptor := field(name, number, descriptorpb.FieldDescriptorProto_TYPE_MESSAGE)
	descriptor.TypeName = proto.String(kind)
	return descriptor
}

func repeated(name string, number int32) *descriptorpb.FieldDescriptorProto {
	descriptor := field(name, number, descriptorpb.FieldDescriptorProto_TYPE_STRING)
	descriptor.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	return descriptor
}
