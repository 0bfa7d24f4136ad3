case ":$PATH:" in
*:/opt/vllm/bin:*) ;;
*) PATH="$PATH:/opt/vllm/bin" ;;
esac
export PATH
